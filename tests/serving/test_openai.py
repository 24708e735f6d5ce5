"""OpenAI's API, asked by OpenAI's own client and by hand."""

import asyncio
import base64
import json
import time

import httpx
import numpy as np
import openai
import pytest
from openai_server import serving
from toy_writer import CONTEXT, TAIL, answer_of, tokens_of

from serving import metrics, openai_requests
from serving.client import AsyncClient, Client, InvalidRequest, Part
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.openai import shown
from serving.remote import RemoteRepository
from serving.service import Service

PROMPT = "Once 小 "


@pytest.fixture(scope="module", params=["embedded", "remote"])
def repository(request, writers, serve_grpc):
    """The models themselves, and a front door's over the gRPC of a server of them."""
    if request.param == "embedded":
        yield writers
        return
    with serve_grpc(Service(writers)) as stubs:
        names = ("writer", "whole", "classifier", "older")
        remote = RemoteRepository(
            ServerConfig(engine="remote", backend=stubs.address, only_models=names)
        )
        yield remote
        assert remote.stop()


@pytest.fixture(scope="module")
def server(repository):
    with serving(repository, ServerConfig(max_answers=6, max_answer_tokens=500)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, **settings):
    given = {"model": "writer", "prompt": PROMPT, "max_tokens": 90, "seed": 5} | settings
    return client.completions.create(**given)


# Completions --------------------------------------------------------------------------------------


def test_a_completion(client):
    answer = complete(client, temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1)
    (choice,) = answer.choices
    assert choice.text == answer_of(
        PROMPT, temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1, seed=5
    )
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (9, len(choice.text.encode()))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (answer.object, answer.model) == ("text_completion", "writer")
    assert answer.id.startswith("cmpl-") and abs(answer.created - time.time()) < 60


def test_what_vllm_has_besides(client):
    extra = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.5}
    answer = complete(client, extra_body=extra)
    assert answer.choices[0].text == answer_of(PROMPT, seed=5, **extra)
    assert complete(client, extra_body={"top_k": -1}).choices[0].text == answer_of(PROMPT, seed=5)


def test_the_default_is_16_tokens_and_a_seed_by_chance(client):
    first, second = (
        client.completions.create(model="writer", prompt="a", temperature=0) for _ in range(2)
    )
    assert first.usage.completion_tokens == 16 and first.choices[0].finish_reason == "length"
    assert first.choices[0].text != second.choices[0].text  # the toy tells its seed


@pytest.mark.parametrize("model", ["writer", "whole"])
def test_a_stream_is_the_answer_in_events(client, model):
    whole = complete(client, model=model)
    events = list(
        complete(client, model=model, stream=True, stream_options={"include_usage": True})
    )
    *parts, last = events
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in parts[-2:]] == [None, "stop"]
    assert all(part.usage is None for part in parts)
    assert last.choices == [] and last.usage == whole.usage
    assert len({event.id for event in events}) == 1
    assert len(parts) > 5
    assert not any("\ufffd" in part.choices[0].text for part in parts)


def test_every_event_may_tell_what_was_counted_so_far(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = complete(client, max_tokens=9, stream=True, stream_options=options)
    assert [part.usage.completion_tokens for part in parts] == [1, 3, 7, 9]
    assert {part.usage.prompt_tokens for part in parts} == {9}
    assert parts[-1].usage == last.usage


def test_events_as_they_are_on_the_wire(server):
    body = {"model": "writer", "prompt": "a", "max_tokens": 3, "seed": 1, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-model-version"] == "4"
        assert response.headers["cache-control"] == "no-cache"
        text = response.read().decode()
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    content = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(event["choices"][0]["text"] for event in content) == answer_of("a")[:3]
    assert all("usage" not in event for event in content)


def test_several_prompts_and_answers(client):
    answer = complete(client, prompt=["a", "bcd"], n=3, seed=8)
    found = [(choice.index, choice.text) for choice in answer.choices]
    wanted = [answer_of(prompt, seed=8 + i) for prompt in ("a", "bcd") for i in range(3)]
    assert found == list(enumerate(wanted))
    assert answer.usage.prompt_tokens == 4
    texts = [""] * 6
    for event in complete(client, prompt=["a", "bcd"], n=3, seed=8, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == wanted


def test_prompts_may_be_tokens(client):
    assert complete(client, prompt=tokens_of("ab")).choices[0].text == answer_of("ab", seed=5)
    answer = complete(client, prompt=[tokens_of("ab"), tokens_of("小")], echo=True, max_tokens=2)
    assert [choice.text[:2] for choice in answer.choices] == ["ab", "小" + answer_of("小")[0]]


def test_stop_strings(client):
    whole = answer_of(PROMPT, seed=5)
    for stop in ("狐", [" 小", "nowhere"]):
        end = whole.index(stop if isinstance(stop, str) else stop[0])
        answer = complete(client, stop=stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[:end], "stop")
        events = list(complete(client, stop=stop, stream=True))
        assert "".join(event.choices[0].text for event in events) == whole[:end]


def test_the_likeliest_of_several(client, writers):
    """`best_of` keeps those of the highest log-probability a token: the shortest of the toy."""
    answer = complete(client, best_of=4, n=2, prompt="a", seed=-2, max_tokens=500)
    texts = [choice.text for choice in answer.choices]
    assert texts == [answer_of("a", seed=0), answer_of("a", seed=1)]
    assert [choice.index for choice in answer.choices] == [0, 1]
    four = sum(len(answer_of("a", seed=-2 + i).encode()) for i in range(4))
    assert answer.usage.completion_tokens == four
    assert answer.choices[0].logprobs is None


def test_log_probabilities(client):
    answer = complete(client, max_tokens=4, logprobs=2)
    found, text = answer.choices[0].logprobs, answer.choices[0].text
    assert found.tokens == list(text) and found.text_offset == [0, 1, 2, 3]
    assert np.round(found.token_logprobs, 4).tolist() == [-0.1, -0.2, -0.3, -0.4]
    assert [list(top)[0] for top in found.top_logprobs] == list(text)
    assert all(len(top) == 2 for top in found.top_logprobs)
    events = list(complete(client, max_tokens=4, logprobs=2, stream=True))
    tokens = [token for event in events for token in event.choices[0].logprobs.tokens]
    offsets = [x for event in events for x in event.choices[0].logprobs.text_offset]
    assert (tokens, offsets) == (found.tokens, found.text_offset)


def test_parts_of_characters_are_shown_as_bytes(client):
    start = len(answer_of("a", seed=5).removesuffix(TAIL))
    answer = complete(client, prompt="a", max_tokens=90, logprobs=0)
    found = answer.choices[0].logprobs
    assert found.tokens[start + 1 : start + 4] == [r"bytes:\xe5", r"bytes:\xb0", r"bytes:\x8f"]
    # A character is there with its last byte.
    assert found.text_offset[start : start + 5] == [start, *[start + 1] * 3, start + 2]
    assert [len(top) for top in found.top_logprobs[:3]] == [1, 1, 1]
    assert shown(b"\xff") == r"bytes:\xff"


def test_tokens_that_are_shown_alike_are_all_told_of(client):
    """Of tokens without bytes of their own every part of a character is shown as U+FFFD."""
    answer = complete(client, model="whole", prompt="a", logprobs=5)
    found = answer.choices[0].logprobs
    assert "\ufffd" in found.tokens
    for token, own, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert len(top) == 5 and top[token] == own == max(top.values())
        assert np.allclose(sorted(top.values()), own - np.arange(4.0, -1, -1), atol=1e-5)
    tokens = tokens_of("小")[:1]
    alike = [f"token_id:{tokens[0] + i}" for i in range(1, 5)]
    assert ["\ufffd", *alike] in [list(top) for top in found.top_logprobs]


def test_echo_gives_the_prompt_and_how_likely_it_was(client):
    """What lm-evaluation-harness asks as `local-completions`: text and tokens, 0 and 1 to write."""
    for prompt in ("ab c", tokens_of("ab c")):
        for max_tokens in (0, 1):
            answer = complete(
                client, prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
            )
            choice = answer.choices[0]
            written = answer_of("ab c", temperature=0, seed=5)[:max_tokens]
            assert choice.text == "ab c" + written
            found = choice.logprobs
            assert found.tokens == list(choice.text)
            assert found.token_logprobs[:4] == [-0.5, -1.0, -1.5, -2.0]
            assert found.text_offset == list(range(4 + max_tokens))
            # Its own reading of them: whether each token was the likeliest.
            greedy = [
                own == max(top.values())
                for own, top in zip(found.token_logprobs, found.top_logprobs, strict=True)
            ]
            assert greedy[:4] == [False, True, False, True]
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, max_tokens)
            assert choice.finish_reason == "length"
    events = list(complete(client, prompt="ab", echo=True, logprobs=1, max_tokens=2, stream=True))
    assert events[0].choices[0].text == "ab"
    tokens = [token for event in events for token in event.choices[0].logprobs.tokens]
    assert len(tokens) == 4


# Chat ---------------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who?"},
]
TEMPLATE = "Be short.\nUser: Hi!\nAssistant: Hello.\nUser: Who?\nAssistant:"


def talk(client, **settings):
    given = {"model": "writer", "messages": MESSAGES, "max_tokens": 34, "seed": 5} | settings
    return client.chat.completions.create(**given)


def test_a_chat_is_one_text_that_goes_on(client):
    answer = talk(client, max_tokens=30)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == answer_of(TEMPLATE, seed=5)[:30]
    assert (answer.object, choice.finish_reason) == ("chat.completion", "length")
    assert answer.usage.prompt_tokens == len(TEMPLATE)
    # Without a limit it fills the context: BEGIN, prompt, answer.
    answer = talk(client, max_tokens=openai.omit)
    assert answer.usage.total_tokens == CONTEXT - 1


def test_a_chat_as_a_stream(client):
    whole = talk(client, max_completion_tokens=20, n=2)
    events = list(
        talk(
            client,
            max_completion_tokens=20,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = ["", ""]
    for event in events[:-1]:
        texts[event.choices[0].index] += event.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    firsts = {
        event.choices[0].index: event.choices[0].delta.role for event in reversed(events[:-1])
    }
    assert firsts == {0: "assistant", 1: "assistant"}
    assert events[-1].usage == whole.usage
    assert {event.object for event in events} == {"chat.completion.chunk"}


def test_log_probabilities_of_a_chat(client):
    answer = talk(client, max_tokens=3, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    assert [bytes(entry.bytes) for entry in content] == [e.token.encode() for e in content]
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert round(content[2].logprob, 4) == -0.3


# Embeddings and models ----------------------------------------------------------------------------


def test_embeddings(client, server):
    answer = client.embeddings.create(model="writer", input=["abc", "a"])
    wanted = np.array([[3, 1, 0], [1, 1, 0]]) / np.sqrt([[10], [2]])
    found = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # the client asks for base64
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4
    by_hand = client.embeddings.create(
        model="writer", input=tokens_of("abc"), encoding_format="float", dimensions=3
    )
    np.testing.assert_allclose(by_hand.data[0].embedding, wanted[0], atol=1e-6)
    body = {"model": "writer", "input": "abc", "encoding_format": "base64"}
    raw = httpx.post(f"{server.url}/v1/embeddings", json=body).json()
    data = base64.b64decode(raw["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), wanted[0], atol=1e-6)


def test_models_in_both_forms(client, server):
    names = ["classifier", "older", "whole", "writer"]
    assert [model.id for model in client.models.list()] == names
    listed = httpx.get(f"{server.url}/v1/models").json()
    assert [model["name"] for model in listed["models"]] == names
    assert listed["object"] == "list" and len(listed["data"]) == 4
    one = client.models.retrieve("writer")
    assert (one.id, one.object, one.owned_by) == ("writer", "model", "stepwise")
    # Whoever is not OpenAI's client gets TensorFlow Serving's answer.
    status = httpx.get(f"{server.url}/v1/models/writer").json()
    assert status["model_version_status"][0]["version"] == "4"
    with pytest.raises(openai.NotFoundError, match="Could not find any versions of model nobody"):
        client.models.retrieve("nobody")
    error = httpx.get(f"{server.url}/v1/models/nobody").json()["error"]
    assert error == "Could not find any versions of model nobody"


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "completions", 405),
        ("PUT", "chat/completions", 405),
        ("DELETE", "embeddings", 405),
        ("POST", "completions/", 404),
        ("GET", "chat/completions/x", 404),
        ("POST", "responses", 404),
        ("POST", "audio/speech", 404),
    ],
)
def test_other_methods_and_urls_of_openais_api(embedded, method, path, status):
    answer = httpx.request(method, f"{embedded.url}/v1/{path}")
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert path in error["message"] and "POST" in error["message"]
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_openais_client_is_told_what_there_is(embedded):
    with openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="only POST /v1/completions"):
            client.responses.create(model="writer", input="a")


def test_a_405_to_head_has_no_body(embedded):
    answer = httpx.head(f"{embedded.url}/v1/completions")
    assert (answer.status_code, answer.content) == (405, b"")


def refusal(server, path="completions", **body):
    """(status, error) of a request that must not run."""
    given = {"model": "writer", "prompt": "a"} if path == "completions" else {"model": "writer"}
    if path == "chat/completions":
        given["messages"] = MESSAGES
    response = httpx.post(f"{server.url}/v1/{path}", json=given | body)
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", 0, "from 1 to 6"),
        ("n", 7, "from 1 to 6"),
        ("n", "2", "whole number"),
        ("best_of", 7, "from 1 to 6"),
        ("max_tokens", 501, "from 0 to 500"),
        ("max_tokens", -1, "from 0 to 500"),
        ("temperature", -0.1, "from 0 to"),
        ("temperature", "hot", "a number"),
        ("top_p", 0, "above 0"),
        ("presence_penalty", 3, "from -2 to 2"),
        ("frequency_penalty", -3, "from -2 to 2"),
        ("logprobs", 6, "from 0 to 5"),
        ("stop", ["a"] * 5, "at most 4 of them"),
        ("stop", "", "of 1 to 256"),
        ("stop", ["x" * 257], "of 1 to 256"),
        ("seed", 1.5, "whole number"),
        ("prompt", [], "a string"),
        ("prompt", 5, "a string"),
        ("prompt", [True], "of strings"),
        ("prompt", ["a", 5], "of strings or of lists"),
        ("prompt", ["a"] * 7, "--max-answers"),
        ("prompt", [[0, 5]], "begin at 1"),
        ("model", 3, "the name of a model"),
        ("stream", "yes", "true or false"),
        ("stream_options", {"include_usage": True}, "unless stream"),
        ("suffix", "end", "is not supported: these networks write from left to right"),
        ("logit_bias", {"5": 1}, "is not supported"),
        ("tools", [{}], "call no functions"),
        ("grammar", "x", "no such field"),
        ("truncate_prompt_tokens", 0, "-1 or at least 1"),
    ],
)
def test_out_of_range_is_refused_by_name(server, field, value, words):
    status, error = refusal(server, **{field: value})
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", field)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
    ],
)
def test_what_does_not_go_together(server, body, param):
    assert refusal(server, **body)[1]["param"] == param


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least one"),
        ({"messages": ["hi"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0]", "no functions"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "no images",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "no functions"),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"modalities": ["audio"]}, "modalities", '["text"]'),
        ({"top_logprobs": 2}, "top_logprobs", "unless logprobs"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs", "from 0 to 5"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "from 1 to 500"),
    ],
)
def test_what_a_chat_lacks(server, body, param, words):
    status, error = refusal(server, "chat/completions", **body)
    assert (status, error["param"]) == (400, param) and words in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": [tokens_of("a" * CONTEXT)]}, "input"),
        ({"input": "a" * CONTEXT}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 2}, "dimensions"),
    ],
)
def test_embeddings_that_there_are_none_of(server, body, param):
    status, error = refusal(server, "embeddings", **body)
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("read", "known"),
    [
        (openai_requests.completion, openai_requests.OF_COMPLETIONS),
        (openai_requests.chat, openai_requests.OF_CHAT),
        (openai_requests.embeddings, openai_requests.OF_EMBEDDINGS),
    ],
)
def test_no_error_repeats_more_than_a_line_of_what_came(read, known):
    good = {"model": "m", "prompt": "a", "messages": MESSAGES, "input": "a", "logprobs": True}
    long = "x" * 9000
    junk = [long, [long], {long: long}, {"role": long}, [{long: 1}], [[long] * 9000], [[5] * 9000]]
    junk += [[{"role": long}], [{"role": "user", "content": {long: 1}}], -(10.0**300), [[[[long]]]]]
    refused = set()
    for field in [*sorted(known), *openai_requests.LACKING, long]:
        for value in junk:
            body = {name: x for name, x in good.items() if name in known} | {field: value}
            try:
                read(body, ServerConfig())
            except ServingError as error:
                refused.add(field)
                assert len(error.message) < 300 and len(getattr(error, "field", "")) <= 80
    assert refused >= known - {"user"} and long in refused


def test_models_that_do_not_write(server):
    status, error = refusal(server, model="nobody")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    status, error = refusal(server, model="classifier")
    assert status == 400 and "/v1/models/classifier:predict" in error["message"]
    status, error = refusal(server, model="older")
    assert status == 400 and "export it again" in error["message"]


def test_a_prompt_that_is_too_long(client, server):
    status, error = refusal(server, prompt="x" * 95)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "96 tokens" in error["message"] and "has 95" in error["message"]
    assert complete(client, prompt="x" * 94, max_tokens=9).usage.completion_tokens == 1
    for truncate, size in ((-1, 95 - 40), (10, 10), (200, 94)):
        body = {"truncate_prompt_tokens": truncate}
        answer = complete(client, prompt="y" * 500, max_tokens=40, extra_body=body)
        assert answer.usage.prompt_tokens == size
        assert answer.usage.prompt_tokens_details.truncated_tokens == 500 - size
    # An answer without a limit has half of the context; what is only scored needs no room for one.
    messages = [{"role": "user", "content": "z" * 500}]
    chat = client.chat.completions.create(
        model="writer", messages=messages, extra_body={"truncate_prompt_tokens": -1}
    )
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens) == (95 - 48, 48)
    scored = complete(client, prompt="x" * 95, max_tokens=0, echo=True, logprobs=0)
    assert len(scored.choices[0].logprobs.tokens) == 95
    _, error = refusal(server, prompt="x" * 96, max_tokens=0, echo=True)
    assert "of an answer" not in error["message"] and "has 96" in error["message"]


def test_advice_is_such_as_can_be_followed(server):
    body = {"model": "writer", "input": "x" * 96}
    error = httpx.post(f"{server.url}/v1/embeddings", json=body).json()["error"]
    assert error["code"] == "context_length_exceeded" and "has 96" in error["message"]
    assert "truncate" not in error["message"] and "answer" not in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "empty"), (b"{", "JSON"), (b"[]", "JSON object"), (b'{"model": "writer"}', "a string")],
)
def test_bodies_that_are_no_request(server, body, words):
    response = httpx.post(f"{server.url}/v1/completions", content=body)
    assert response.status_code == 400 and words in response.json()["error"]["message"]


JUNK = [
    *(0, -1, 3, 2**31, 2**63, 10**30, 1.5, 1e308, True, False, "", "a", "\\ud800", [], [[]]),
    *([0], [-5], [2**40], ["a", 1], [None], {}, {"a": [{}]}, [{"role": "user", "content": []}]),
    *("NaN", "1e999"),
]


@pytest.mark.parametrize("path", ["completions", "chat/completions", "embeddings"])
def test_no_body_is_a_fault_of_ours(embedded, path):
    """Every field with every kind of nonsense: an answer, or an error of the caller's."""
    known = {
        "completions": openai_requests.OF_COMPLETIONS,
        "chat/completions": openai_requests.OF_CHAT,
        "embeddings": openai_requests.OF_EMBEDDINGS,
    }[path]
    good = {
        "completions": {"prompt": "a", "max_tokens": 2},
        "chat/completions": {"messages": MESSAGES, "max_tokens": 2},
        "embeddings": {"input": "a"},
    }[path] | {"model": "writer"}
    statuses = set()
    with httpx.Client() as client:
        for field in [*sorted(known), *openai_requests.LACKING, "other"]:
            for junk in JUNK:
                value = junk if junk in ("NaN", "1e999") else json.dumps(junk)
                rest = json.dumps({name: x for name, x in good.items() if name != field})
                body = f'{{"{field}": {value}, {rest[1:]}'.replace("\\\\ud8", "\\ud8")
                response = client.post(f"{embedded.url}/v1/{path}", content=body.encode())
                statuses.add(response.status_code)
                assert response.status_code in (200, 400, 404), (body, response.text)
                if response.status_code != 200:
                    error = response.json()["error"]
                    assert error["type"] == "invalid_request_error" and error["message"], body
    assert statuses == {200, 400, 404}


def test_bytes_that_are_no_utf8_are_replaced(server):
    body = b'{"model": "writer", "prompt": "a\xffb", "echo": true, "max_tokens": 0}'
    answer = httpx.post(f"{server.url}/v1/completions", content=body).json()
    assert answer["choices"][0]["text"] == "a?b"


def test_the_door_speaks_openais_form_here_alone(writers, monkeypatch):
    monkeypatch.setenv("STEPWISE_API_KEYS", "a-key-0123456789")
    with serving(writers, ServerConfig(max_body_bytes=200)) as running:
        body = {"model": "writer", "prompt": "a", "max_tokens": 1}
        denied = httpx.post(f"{running.url}/v1/completions", json=body)
        assert denied.status_code == 401
        assert denied.json()["error"]["code"] == "invalid_api_key"
        other = httpx.get(f"{running.url}/v1/models/writer")
        assert isinstance(other.json()["error"], str)
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as stranger:
            with pytest.raises(openai.AuthenticationError, match="key") as caught:
                stranger.models.list()
        assert caught.value.body["code"] == "invalid_api_key"
        with openai.OpenAI(
            base_url=f"{running.url}/v1", api_key="a-key-0123456789", max_retries=0
        ) as client:
            assert client.completions.create(**body).usage.completion_tokens == 1
            with pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(**body | {"prompt": "x" * 300})
        assert caught.value.status_code == 413
        assert "--max-body-bytes" in caught.value.body["message"]


def test_answers_of_a_model_without_an_engine_wait_like_other_requests(repository):
    """Of the nine that eight threads and one place to wait have room for, none is refused."""
    with serving(repository, ServerConfig(max_waiting_requests=1)) as running:
        url = f"{running.url}/v1/completions"
        for is_stream in (False, True):
            body = {"model": "writer", "prompt": "a", "max_tokens": 5}
            body |= {"n": 10, "stream": is_stream}
            refused = httpx.post(url, json=body)
            assert refused.status_code == 429 and refused.headers["retry-after"]
            error = refused.json()["error"]
            assert "--max-waiting-requests" in error["message"]
            assert error["code"] == "rate_limit_exceeded"
            assert httpx.post(url, json=body | {"n": 9}).status_code == 200
            assert running.service.num_running == 0


# Our own client -----------------------------------------------------------------------------------


def test_our_client_completes_and_streams(server):
    settings = {"max_tokens": 90, "temperature": 0.5, "seed": 4, "stop": ["🦊"]}
    wanted = answer_of("ab", temperature=0.5, seed=4).split("🦊")[0]
    with Client(server.url) as client:
        whole = client.complete("writer", "ab", **settings)
        assert (whole.text, whole.finish_reason) == (wanted, "stop")
        *parts, last = client.write("writer", "ab", **settings)
        assert "".join(part.text for part in parts) == wanted and len(parts) > 5
        assert last == Part("", "stop", whole.num_tokens, 2)
        counts = [part.num_tokens for part in parts]
        assert counts == sorted(counts) and counts[:2] == [1, 3] and counts[-1] <= last.num_tokens
        # Of a prompt that is too long the end is read, as by `generate`.
        assert client.complete("writer", "x" * 500, max_tokens=4).num_tokens == 4
        with pytest.raises(InvalidRequest, match="top_p must be above 0"):
            client.complete("writer", "a", top_p=0)
        with pytest.raises(InvalidRequest, match="does not exist"):
            list(client.write("nobody", "a"))


def test_our_client_in_an_event_loop(server):
    async def take():
        async with AsyncClient(server.url) as client:
            whole = await client.complete("writer", "ab", seed=1)
            return whole, [part async for part in client.write("writer", "ab", seed=1)]

    whole, parts = asyncio.run(take())
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1] == Part("", whole.finish_reason, whole.num_tokens, 2)


def test_junk_in_a_message_and_long_names_are_the_callers_fault(server):
    for role in (["user"], {}, 5, None):
        body = {"model": "writer", "messages": [{"role": role, "content": "x"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert answer.status_code == 400 and "messages[0].role" in answer.json()["error"]["param"]
    body = {"model": "m" * 100_000, "prompt": "x"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 400 and len(answer.content) < 1000


def test_names_that_nobody_has_leave_no_counts(server):
    body = {"model": "no-such-model-of-anybody", "prompt": "x"}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 404
    assert "no-such-model-of-anybody" not in metrics.page()
