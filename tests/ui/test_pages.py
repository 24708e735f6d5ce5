import json
import re
import shlex

import pytest
from ui_stub import (
    SENTIMENT,
    STORIES,
    TOPICS,
    bodies,
    click,
    go_to,
    look_again,
    notices,
    words,
)

from serving import client as serving_client
from serving.client import Generation, ModelInfo, VersionStatus
from ui import backend, settings
from ui.texts import EXAMPLES, TEXTS, text

LANGUAGES = ("en", "zh")
PAGES = {
    "": "sentiment",
    **{name: name for name in ("topics", "generate", "engine", "status")},
}
ASKING = ["", "topics", "generate"]
MARKUP = "<script>alert(1)</script> **bold** $x$ :smile: [link](http://x) <b>&amp;</b>"

FAILURES = [
    (serving_client.ServerUnreachable("x"), "error.ServerUnreachable"),
    (serving_client.ModelNotFound("x"), "error.ModelNotFound"),
    (serving_client.ModelNotReady("x"), "error.ModelNotReady"),
    (serving_client.InvalidRequest("x"), "error.InvalidRequest"),
    (serving_client.ServerFailed("x"), "error.ServerFailed"),
    (serving_client.RequestTimedOut("x"), "error.RequestTimedOut"),
    (ZeroDivisionError("x"), "error.unexpected"),
]


def sentence(key: str, language: str, model: str) -> str:
    return text(key, language, model=model, url=settings.server())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_speaks_one_language_throughout(open_page, page, language):
    at = open_page(page, language)
    name = PAGES[page]
    assert at.title[0].value == TEXTS[f"nav.{name}"][language]
    assert TEXTS[f"{name}.intro"][language] in words(at)
    assert not notices(at) or page == "engine"  # which says that none writes
    other = "zh" if language == "en" else "en"
    shown = words(at) + "".join(
        button.label for button in at.button if ".example." not in button.key
    )
    shown += "".join(widget.label + str(widget.help) for widget in (*at.slider, *at.selectbox))
    for entry in TEXTS.values():
        if entry["en"] != entry["zh"] and "{" not in entry[other] and " " in entry["en"]:
            assert entry[other] not in shown


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(("page", "model"), [("", "sentiment"), ("topics", "topics")])
def test_an_example_fills_the_text_and_is_classified_on_one_click(
    open_page, client, page, model, language, number
):
    at = click(open_page(page), f"{PAGES[page]}.example.{language}.{number}")
    example = EXAMPLES[PAGES[page]][language][number]
    assert client.classified == [(model, [example])]
    assert at.text_area[0].value == example
    assert re.search(r"\|positive\|.*\|87\.5%\|.*\|12\.5%\|", words(at), re.S)


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_is_continued_on_one_click_with_the_settings_as_they_stand(
    open_page, client, language
):
    at = open_page("generate")
    at.slider(key="generate.temperature").set_value(0.5)
    at.slider(key="generate.max_tokens").set_value(33)
    at.number_input(key="generate.seed").set_value(9).run()
    at = click(at, f"generate.example.{language}.1")
    example = EXAMPLES["generate"][language][1]
    options = {"max_tokens": 33, "temperature": 0.5, "top_k": 0, "top_p": 0.95, "seed": 9}
    assert client.generated == [("stories", example, options)]
    assert at.text_area[0].value == example
    assert f"{example}|| and then it rained." in words(at)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("error", "key"), FAILURES, ids=[key for _, key in FAILURES])
@pytest.mark.parametrize("page", ["", "generate"])
def test_a_failed_request_is_a_sentence(open_page, client, page, error, key, language):
    client.answer_error = error
    at = click(open_page(page, language), f"{PAGES[page]}.example.en.0")
    model = "stories" if page == "generate" else "sentiment"
    assert notices(at) == [sentence(key, language, model)]
    assert "Traceback" not in words(at) and "ZeroDivision" not in words(at)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", PAGES)
def test_a_missing_server_is_a_sentence_in_the_page_and_beside_it(
    open_page, client, page, language
):
    client.state_error = serving_client.ServerUnreachable("x")
    at = open_page(page, language)
    expected = sentence("error.ServerUnreachable", language, "")
    assert notices(at) == [expected]
    assert words(at).count(expected) == 2
    assert TEXTS["server.stopped"][language] in words(at)


def test_an_error_of_our_own_is_a_sentence_and_in_the_log(open_page, monkeypatch, caplog):
    monkeypatch.setattr("ui.parts.choose_model", lambda *_: 1 / 0)
    at = open_page()
    assert notices(at) == [TEXTS["error.unexpected"]["en"]]
    assert caplog.records[-1].exc_info[0] is ZeroDivisionError


def test_a_failure_is_forgotten_when_the_server_has_changed_and_an_answer_is_not(open_page, client):
    at = click(open_page(), "sentiment.example.en.0")
    go_to(at, "topics")
    client.answer_error = serving_client.ServerUnreachable("x")
    assert notices(click(at, "topics.example.en.0"))
    client.listed = [SENTIMENT, TOPICS]
    assert not notices(look_again(at))
    assert "87.5%" in words(go_to(at, ""))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("written", ["", " \n\t "])
@pytest.mark.parametrize("page", ASKING)
def test_an_empty_text_is_a_sentence_and_no_request(open_page, client, page, written, language):
    at = open_page(page, language)
    at.text_area[0].set_value(written)
    at = click(at, f"{PAGES[page]}.submit")
    key = "error.empty_prompt" if page == "generate" else "error.empty_text"
    assert notices(at) == [TEXTS[key][language]]
    assert not client.classified and not client.generated


def test_the_answer_follows_the_language(open_page):
    at = click(open_page(), "sentiment.example.en.0")
    assert "Model sentiment · version 3 · answered in" in words(at)
    at.segmented_control(key="language").set_value("zh").run()
    assert "模型 sentiment · 版本 3 · 用时" in words(at)


def test_language_and_draft_survive_a_visit_to_another_page(open_page):
    at = open_page()
    at.segmented_control(key="language").set_value("zh").run()
    assert at.query_params["language"] == "zh"
    at.text_area[0].set_value("a draft")
    click(at, "sentiment.submit")
    del at.query_params["language"]  # as the browser does when the page changes
    for page in ("generate", "status", "topics"):
        assert go_to(at, page).title[0].value == TEXTS[f"nav.{page}"]["zh"]
    assert at.query_params["language"] == "zh"
    assert at.text_area[0].value == ""
    assert go_to(at, "").text_area[0].value == "a draft"


@pytest.mark.parametrize(("asked", "title"), [("zh", "情感分析"), ("fr", "Sentiment")])
def test_an_unknown_language_in_the_address_is_ignored(open_page, asked, title):
    assert open_page("", asked).title[0].value == title


def test_the_language_to_start_in_can_be_set(open_page, monkeypatch):
    monkeypatch.setenv(settings.LANGUAGE, "zh")
    assert open_page("", "").title[0].value == "情感分析"


@pytest.mark.parametrize("page", ["", "topics"])
def test_labels_are_shown_letter_by_letter(open_page, client, page):
    client.scores = {MARKUP: 0.9, "plain": 0.1}
    at = click(open_page(page), f"{PAGES[page]}.example.en.0")
    assert "<script>" not in bodies(at) and "<b>" not in bodies(at)
    assert bodies(at).count("&lt;script&gt;alert(1)&lt;/script&gt; **bold** $x$ :smile:") == 2
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in bodies(at)
    assert not at.markdown


def test_generated_text_is_shown_letter_by_letter_and_apart_from_the_prompt(open_page, client):
    client.generation = Generation(f"  two\n\nlines {MARKUP}", 1, "stop")
    at = open_page("generate")
    at.text_area[0].set_value("<i>begin</i> *x*")
    at = click(at, "generate.submit")
    assert '<span class="sw-prompt">&lt;i&gt;begin&lt;/i&gt; *x*</span>' in bodies(at)
    assert '<span class="sw-continuation">  two\n\nlines &lt;script&gt;' in bodies(at)
    assert "<script>" not in bodies(at)
    assert not at.markdown


def test_words_of_the_server_are_shown_letter_by_letter(open_page, client):
    client.answer_error = serving_client.InvalidRequest(MARKUP)
    at = click(open_page(), "sentiment.example.en.0")
    assert "<script>" not in bodies(at) and "&lt;script&gt;" in bodies(at)


def test_each_line_is_classified_by_itself(open_page, client):
    at = open_page("topics")
    at.text_area[0].set_value("first\n\n  second <b>  \n")
    at.toggle[0].set_value(True)
    at = click(at, "topics.submit")
    assert client.classified == [("topics", ["first", "second <b>"])]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", bodies(at))
    assert rows == [("first", "positive", "87.5%"), ("second &lt;b&gt;", "positive", "87.5%")]


def test_too_many_lines_are_a_sentence_and_no_request(open_page, client):
    at = open_page()
    at.text_area[0].set_value("x\n" * 101)
    at.toggle[0].set_value(True)
    at = click(at, "sentiment.submit")
    assert "101" in notices(at)[0] and "100" in notices(at)[0]
    assert not client.classified


def test_the_menu_lists_classifiers_that_are_ready_and_asks_the_chosen_one(open_page, client):
    loading = ModelInfo("other", 1, "LOADING", None)
    client.listed = [TOPICS, SENTIMENT, STORIES, loading]
    at = open_page()
    assert at.selectbox[0].options == ["topics", "sentiment"]
    assert at.selectbox[0].value == "sentiment"
    at.selectbox[0].set_value("topics").run()
    click(at, "sentiment.example.en.0")
    assert client.classified[0][0] == "topics"
    client.listed = [SENTIMENT, ModelInfo("third", 1, "AVAILABLE", "classifier")]
    assert look_again(at).selectbox[0].value == "sentiment"


def test_a_single_generator_needs_no_menu(open_page):
    assert not open_page("generate").selectbox


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("page", "kind", "model"),
    [
        ("", "classifier", "sentiment"),
        ("topics", "classifier", "topics"),
        ("generate", "generator", "stories"),
    ],
)
def test_without_its_models_a_page_says_what_to_do(open_page, client, page, kind, model, language):
    client.listed = []
    at = open_page(page, language)
    kind = TEXTS[f"kind.{kind}"][language]
    assert notices(at) == [text("missing.none", language, model=model, kind=kind)]
    assert TEXTS["server.no_models"][language] in words(at)

    client.listed = [ModelInfo(model, 2, "LOADING", None)]
    state = TEXTS["state.LOADING"][language]
    expected = text("missing.not_served", language, model=model, state=state)
    assert notices(look_again(at)) == [expected]
    click(at, f"{PAGES[page]}.example.en.0")
    assert not client.classified and not client.generated


def test_another_model_stands_in_for_the_preferred_one_and_the_page_says_so(open_page, client):
    client.listed = [SENTIMENT, STORIES]
    at = open_page("topics")
    assert notices(at) == [text("missing.other", "en", model="topics")]
    click(at, "topics.example.en.0")
    assert client.classified[0][0] == "sentiment"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("num_tokens", "reason", "expected"),
    [
        (
            1,
            "stop",
            {"en": r"1 token · the first after \d+ ms · The model ended the", "zh": "· 模型"},
        ),
        (
            40,
            "length",
            {"en": r"40 tokens · \d+ tokens/s · .* · Cut off at", "zh": "· 达到长度上限"},
        ),
        (2, "<odd>", {"en": "Finished: <odd>", "zh": r"每秒 \d+ 个词元 · .*结束原因：<odd>"}),
    ],
)
def test_the_end_of_a_text_is_told_in_words(
    open_page, client, num_tokens, reason, expected, language
):
    client.generation = Generation("text", num_tokens, reason)
    at = click(open_page("generate", language), "generate.example.en.0")
    assert re.search(expected[language], words(at))


def test_a_text_that_is_stopped_stays_as_far_as_it_had_come(open_page, client):
    client.is_stopped_by_click = True
    at = click(open_page("generate"), "generate.example.en.0")
    assert client.is_closed  # and with it the server's work
    at.run()
    assert "|| and|" in words(at) and "then it rained" not in words(at)
    assert TEXTS["finish.interrupted"]["en"] in words(at)
    assert not [button for button in at.button if button.key == "generate.stop"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_that_breaks_off_stays_with_the_reason_below_it(open_page, client, language):
    client.break_error = serving_client.ServerFailed("gone")
    at = click(open_page("generate", language), "generate.example.en.0")
    for _ in range(2):  # as it is written, and drawn again
        assert "|| and|" in words(at) and TEXTS["finish.broken"][language] in words(at)
        assert notices(at) == [sentence("error.ServerFailed", language, "stories")]
        at.run()
    client.break_error = None
    at = click(at, "generate.example.en.1")
    assert "|| and then it rained.|" in words(at) and not notices(at)


@pytest.mark.parametrize("kind", [serving_client.InvalidRequest, serving_client.ServerFailed])
def test_a_server_without_streams_is_asked_for_all_at_once(open_page, client, kind):
    client.stream_error = kind("Malformed request: POST /v1/completions")
    at = click(open_page("generate"), "generate.example.en.0")
    assert len(client.generated) == 2 and client.generated[0] == client.generated[1]
    assert "|| and then it rained.|" in words(at) and "5 tokens · The model" in words(at)


def test_of_a_long_prompt_its_end_is_shown_and_all_of_it_asked(open_page, client):
    at = open_page("generate")
    prompt = "<b>begin</b> " + "word " * 100 + "end"
    at.text_area[0].set_value(prompt)
    at = click(at, "generate.submit")
    assert client.generated[0][1] == prompt
    assert f"|…{prompt[-400:]}|| and then it rained.|" in words(at) and "<b>begin" not in words(at)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_prompt_of_which_the_end_was_read_says_so(open_page, client, language):
    client.num_truncated_tokens = 4_000
    at = click(open_page("generate", language), "generate.example.en.0")
    assert notices(at) == [text("generate.cut", language, n="136", total="4,136")]


def test_an_empty_continuation_says_so(open_page, client):
    client.generation = Generation("", 0, "stop")
    at = click(open_page("generate"), "generate.example.en.0")
    assert notices(at) == [TEXTS["generate.empty"]["en"]]


def test_the_sidebar_lists_every_model_with_version_or_state(open_page, client):
    client.listed = [SENTIMENT, ModelInfo("<b>x</b>", 2, "LOADING", None)]
    assert "|sentiment|v3|" in words(open_page()) and "|<b>x</b>|loading|" in words(open_page())


def test_status_shows_versions_signatures_and_commands(open_page):
    at = open_page("status")
    assert "|3||available||none|" in words(at)
    assert "|serving_default||input||text||string||(?,)|" in words(at)
    assert "__saved_model_init_op" not in words(at)
    codes = [code.value for code in at.code]
    assert codes[0] == "http://127.0.0.1:8501"
    assert "curl http://127.0.0.1:8501/v1/models/topics" in codes
    assert "curl http://127.0.0.1:8501/v1/models/topics/metadata" in codes
    assert (
        "curl http://127.0.0.1:8501/v1/models/stories:predict -d "
        '\'{"instances": [{"max_tokens": 60, "prompt": '
        '"Once there was a little girl who"}]}\''
    ) in codes


@pytest.mark.parametrize("language", LANGUAGES)
def test_status_shows_why_a_model_is_not_served(open_page, client, language):
    client.listed = [ModelInfo("broken", 4, "END", None), ModelInfo("late", 1, "LOADING", None)]
    client.statuses["broken"] = [VersionStatus(4, "END", "NOT_FOUND", "no <file>")]
    at = open_page("status", language)
    assert notices(at) == [TEXTS["status.failed"][language]]
    assert f"|4||{TEXTS['state.failed'][language]}||NOT_FOUND: no <file>|" in words(at)
    assert f"|1||{TEXTS['state.LOADING'][language]}|" in words(at)
    # Nothing is known of their inputs, so no request is offered.
    assert not any(":predict" in code.value for code in at.code)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["multi_label", "regressor"])
def test_status_says_which_answers_no_page_shows(open_page, client, kind, language):
    client.listed = [ModelInfo("judge", 1, "AVAILABLE", kind)]
    at = open_page("status", language)
    assert TEXTS[f"kind.{kind}"][language] in words(at)
    assert TEXTS["status.no_page"][language] in words(at)
    assert any("judge:predict" in code.value for code in at.code)
    missing = text(
        "missing.none", language, model="topics", kind=TEXTS["kind.classifier"][language]
    )
    assert notices(open_page("topics", language)) == [missing]


def test_status_of_a_model_that_went_away_meanwhile_is_a_sentence(open_page, client, monkeypatch):
    gone = serving_client.ModelNotFound("x")
    monkeypatch.setattr(backend, "details", _raising_details(gone))
    at = open_page("status")
    assert notices(at)[0] == text("error.ModelNotFound", "en", model="sentiment")


def _raising_details(error):
    def details(model):
        return backend.ModelDetails(failure=backend.explain(error, model))

    details.clear = lambda: None
    return details


def test_a_command_survives_odd_names_and_quotes(open_page, client):
    client.listed = [ModelInfo("it's a/b", 1, "AVAILABLE", "classifier")]
    codes = [code.value for code in open_page("status").code]
    assert "curl http://127.0.0.1:8501/v1/models/it%27s%20a%2Fb" in codes
    (predict,) = [code for code in codes if ":predict" in code]
    assert json.loads(shlex.split(predict)[-1])["instances"][0]["text"]
