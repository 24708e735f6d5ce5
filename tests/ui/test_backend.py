import logging

import pytest
from ui_stub import SENTIMENT, STORIES

from serving import client as serving_client
from ui import backend, settings
from ui.texts import TEXTS

CLIENT_ERRORS = [serving_client.ClientError, *serving_client.ClientError.__subclasses__()]


@pytest.mark.parametrize("kind", CLIENT_ERRORS)
def test_every_error_of_the_client_has_a_sentence_of_its_own(kind):
    failure = backend.explain(kind("words of the server"), "topics")
    assert failure.key == f"error.{kind.__name__}"
    for template in TEXTS[failure.key].values():
        assert template.format(**failure.values)


def test_an_unknown_exception_is_logged_in_full_and_shows_nothing_of_itself(caplog):
    with caplog.at_level(logging.ERROR, logger="ui.backend"):
        failure = backend.explain(ZeroDivisionError("secret"), "topics")
    assert failure == backend.Failure("error.unexpected")
    assert caplog.records[0].exc_info[0] is ZeroDivisionError


def test_a_stock_server_is_asked_for_models_by_name(client, monkeypatch):
    client.can_list = False
    assert {model.name for model in backend.server_state().models} == {
        "sentiment",
        "topics",
        "stories",
    }
    monkeypatch.setenv(settings.MODELS, "stories, sentiment")
    backend.server_state.clear()
    assert backend.server_state().models == (SENTIMENT, STORIES)


def test_names_do_not_hide_models_of_a_server_that_lists_its_own(client, monkeypatch):
    monkeypatch.setenv(settings.MODELS, "stories")
    assert len(backend.server_state().models) == 3


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (serving_client.ServerUnreachable("x"), "error.ServerUnreachable"),
        (serving_client.RequestTimedOut("x"), "error.slow"),
        (OSError("x"), "error.unexpected"),
    ],
)
def test_looking_at_the_server_never_raises(client, error, key):
    client.state_error = error
    state = backend.server_state()
    assert state.failure.key == key and state.models == ()


def test_the_default_address_is_the_real_client_s():
    connection = backend.new_client(settings.server(), 1.0)
    assert (connection.url, connection.timeout) == ("http://127.0.0.1:8501", 1.0)
    connection.close()


def test_a_rate_leaves_out_what_came_first(client):
    *_, story = backend.write(STORIES, "Once", {})
    assert (story.num_first_tokens, story.num_tokens) == (1, 5)
    assert story.text == client.generation.text and story.finish_reason == "stop"
