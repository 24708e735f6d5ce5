"""What OpenAI's API does with what is slow, large, too much or given up."""

import asyncio
import contextlib
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai_server import Slow, serving
from toy_exports import wait_until

from serving import openai as openai_door
from serving import openai_requests
from serving.client import Client, ServerFailed
from serving.config import ServerConfig
from serving.writing import Assembler, TokenLogprob, Tokens

BODY = {"model": "writer", "prompt": "a", "max_tokens": 5, "stream": True}


@contextlib.contextmanager
def asking(running, path, body):
    """A request whose caller hangs up at the end of the block, with or without an answer."""
    url = httpx.URL(running.url)
    with contextlib.closing(http.client.HTTPConnection(url.host, url.port)) as connection:
        connection.request("POST", f"/v1/{path}", json.dumps(body))
        yield


class Scripted:
    """A writer of given parts: those of seed i, a token each, and how likely each of them is."""

    context_length, vocabulary_size, has_ended = 64, 260, False

    def __init__(self, *answers):
        self.answers = answers

    async def tokenize(self, texts):
        return [Tokens((5,), 1) for _ in texts]

    async def spell(self, tokens):
        return [b"x" for _ in tokens]

    async def write(self, request):
        parts, logprob = self.answers[request.seed]
        assembler = Assembler(request, num_prompt_tokens=1)
        for i, part in enumerate(parts):
            end = "stop" if i == len(parts) - 1 else None
            piece = assembler.add([i + 1], [part.encode()], [TokenLogprob(logprob)], end)
            yield piece
            if piece.finish_reason:
                return


@pytest.fixture
def scripted(embedded, writers):
    """What OpenAI's client gets when the writer is `Scripted`."""
    with (
        writers.acquire("writer") as servable,
        openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none", max_retries=0) as client,
    ):

        def ask(path, *answers, **settings):
            servable.writer = Scripted(*answers)
            api = client.chat.completions if path == "chat" else client.completions
            return api.create(model="writer", seed=0, **settings)

        yield ask
        servable.writer = None


def test_the_best_are_the_likeliest_by_the_mean_of_their_tokens(scripted):
    answers = [("a", -1.0), ("bbbb", -0.5), ("cc", -0.6), ("ddddd", -3.0)]
    for logprobs in (None, 0):
        answer = scripted("completions", *answers, prompt="p", n=2, best_of=4, logprobs=logprobs)
        assert [choice.text for choice in answer.choices] == ["bbbb", "cc"]
        assert (answer.choices[0].logprobs is None) is (logprobs is None)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("parts", "text", "finish_reason"),
    [
        ([" ", " I", " see"], " I see", "stop"),
        (["", " I", " see"], "I see", "stop"),
        (["I", " see"], "I see", "stop"),
        ([" Hi.\n", "User", ":", " Who?"], "Hi.", "stop"),
        (["Hi.\nUse", "r: "], "Hi.", "stop"),
        (["User: a"], "User: a", "stop"),
        (["a", "##", "b"], "a", "stop"),
    ],
)
def test_a_chat_has_no_blank_at_its_begin_and_ends_at_the_users_turn(
    scripted, is_stream, parts, text, finish_reason
):
    messages = [{"role": "user", "content": "?"}]
    answer = scripted("chat", (parts, -1.0), messages=messages, stop="##", stream=is_stream)
    if is_stream:
        events = list(answer)
        found = "".join(event.choices[0].delta.content or "" for event in events)
        reason = events[-1].choices[0].finish_reason
    else:
        found, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (found, reason) == (text, finish_reason)


def test_a_completion_keeps_its_blank(scripted):
    answer = scripted("completions", ([" a", " b"], -1.0), prompt="p")
    assert answer.choices[0].text == " a b"


class Runs:
    """The runs of a servable by name. `hold` makes those of a signature wait for permissions."""

    def __init__(self, run):
        self._run, self._held, self.may_run = run, "", threading.Semaphore(0)
        self.names, self.timeouts = [], []

    def hold(self, name):
        self._held = name

    def __call__(self, name, inputs, *, timeout=None):
        self.names.append(name)
        self.timeouts.append(timeout)
        if name == self._held:
            assert self.may_run.acquire(timeout=10)
        return self._run(name, inputs, timeout=timeout)


@pytest.fixture
def runs(writers, monkeypatch):
    with writers.acquire("writer") as servable:
        found = Runs(servable.run)
        monkeypatch.setattr(servable, "run", found)
        yield found


@pytest.mark.parametrize(
    ("path", "body", "signature"),
    [
        ("embeddings", {"input": ["ab"] * 100}, "embed"),
        ("completions", {"prompt": ["ab"] * 100, "echo": True, "logprobs": 1}, "score"),
    ],
)
def test_embeddings_and_scores_count_as_requests_and_end_with_their_callers(
    embedded, runs, path, body, signature
):
    service = embedded.service
    runs.hold(signature)
    body = body | {"model": "writer"} | ({"max_tokens": 0} if "prompt" in body else {})
    with asking(embedded, path, body):
        wait_until(lambda: signature in runs.names)
    wait_until(lambda: all(task.cancelling() for task in service._streams))
    assert service.num_running == 1
    runs.may_run.release(4)
    wait_until(lambda: not service._streams)
    assert runs.names.count(signature) == 1, "it went on for nobody"
    assert 0 < runs.timeouts[runs.names.index(signature)] <= 60
    assert service.num_running == 0


def test_a_large_body_is_read_beside_the_loop_and_streams_go_on(embedded, slow, monkeypatch):
    """One that is being checked for as long as a whole stream takes."""
    is_checked, may_end = threading.Event(), threading.Event()

    def check(body, config):
        is_checked.set()
        assert may_end.wait(10)
        return openai_requests.completion(body, config)

    monkeypatch.setitem(openai_door._READERS, "/v1/completions", check)
    url = f"{embedded.url}/v1/completions"
    with ThreadPoolExecutor(1) as pool:
        large = {"model": "writer", "prompt": "x" * 20_000, "max_tokens": 1}
        waiting = pool.submit(httpx.post, url, json=large)
        try:
            assert is_checked.wait(10)
            # It is one of the requests that are bounded, counted a moment after its thread began.
            wait_until(lambda: embedded.service.num_running == 1)
            messages = [{"role": "user", "content": "Hi"}]
            chat = {"model": "writer", "messages": messages, "max_tokens": 5, "stream": True}
            slow.may_write.release(5)
            answer = httpx.post(f"{embedded.url}/v1/chat/completions", json=chat, timeout=5)
            assert answer.text.endswith("data: [DONE]\n\n")
        finally:
            may_end.set()
        assert waiting.result().json()["error"]["code"] == "context_length_exceeded"


def test_a_long_prompt_does_not_take_the_engines_turn(embedded, slow, runs):
    """The engine of a model makes tokens of one text after another."""
    runs.hold("tokenize")
    slow.may_write.release(5)
    url = f"{embedded.url}/v1/completions"
    with ThreadPoolExecutor(1) as pool:
        long = BODY | {"prompt": "x" * 20_000, "truncate_prompt_tokens": -1, "stream": False}
        waiting = pool.submit(httpx.post, url, json=long | {"max_tokens": 1})
        wait_until(lambda: runs.names == ["tokenize"])
        assert httpx.post(url, json=BODY | {"max_tokens": 4}).status_code == 200
        runs.may_run.release()
        assert waiting.result().json()["usage"]["prompt_tokens_details"]["truncated_tokens"]


def test_a_body_of_more_lists_than_anybody_means_is_not_read(embedded):
    body = {"model": "writer", "prompt": [[]] * 10_001}
    answer = httpx.post(f"{embedded.url}/v1/completions", json=body)
    assert answer.status_code == 400 and "--max-rows" in answer.json()["error"]["message"]


def test_events_come_as_they_are_written_and_who_leaves_ends_the_writing(embedded, slow):
    slow.may_write.release(2)
    with httpx.stream("POST", f"{embedded.url}/v1/completions", json=BODY) as response:
        lines = response.iter_lines()
        first = [next(lines) for _ in range(4)]
        assert [line[:6] for line in first] == ["data: ", "", "data: ", ""]
        assert not slow.is_closed.is_set()
        assert len(embedded.service._streams) == 1
    assert slow.is_closed.wait(5)
    wait_until(lambda: not embedded.service._streams)


def test_an_answer_at_once_is_given_up_too_when_nobody_waits(embedded, slow):
    with asking(embedded, "completions", BODY | {"stream": False}):
        assert slow.has_begun.wait(10)
    assert slow.is_closed.wait(5)


def test_an_error_in_the_middle_is_an_event(embedded, slow):
    slow.may_write.release(2)
    with openai.OpenAI(base_url=f"{embedded.url}/v1", api_key="none") as client:
        stream = client.completions.create(**BODY)
        texts = [next(stream).choices[0].text for _ in range(2)]
        slow.error = ValueError("a secret")
        with pytest.raises(openai.APIError, match="its log has the details") as caught:
            next(stream)
    assert texts == ["x", "x"] and caught.value.body["type"] == "server_error"


def test_the_limit_of_an_answer_does_not_end_a_stream(writers, monkeypatch):
    """By the clock of the server's loop, which goes on by an hour where nothing happens."""
    config = ServerConfig(request_timeout_seconds=3600, stream_timeout_seconds=10**6)
    with (
        serving(writers, config) as running,
        writers.acquire("writer") as servable,
        ThreadPoolExecutor(1) as pool,
    ):
        time_of_loop, ahead = running.loop.time, 0
        monkeypatch.setattr(running.loop, "time", lambda: time_of_loop() + ahead)

        def wait_an_hour():
            nonlocal ahead
            ahead += 3600
            # Behind all whose time has come.
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.001), running.loop).result(10)

        servable.writer = slow = Slow()
        url = f"{running.url}/v1/completions"
        try:
            slow.may_write.release(1)
            with httpx.stream("POST", url, json=BODY) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: {")
                for _ in range(3):  # it is watched only after a moment, by this clock
                    wait_an_hour()
                slow.may_write.release(4)
                assert list(lines)[-2] == "data: [DONE]"
            slow.has_begun.clear()
            waiting = pool.submit(httpx.post, url, json=BODY | {"stream": False}, timeout=30)
            assert slow.has_begun.wait(10)
            for _ in range(3):
                wait_an_hour()
            late = waiting.result()
            assert late.status_code == 504
            assert late.json()["error"]["type"] == "server_error"
        finally:
            servable.writer = None


def test_too_many_streams_are_turned_away(writers):
    with serving(writers, ServerConfig(max_streams=1)) as running:
        with writers.acquire("writer") as servable:
            servable.writer = slow = Slow()
            try:
                slow.may_write.release(1)
                url = f"{running.url}/v1/completions"
                with httpx.stream("POST", url, json=BODY) as response:
                    lines = response.iter_lines()  # closed with it, the response would be
                    assert next(lines).startswith("data: {")
                    second = httpx.post(url, json=BODY)
                    assert second.status_code == 429 and second.headers["retry-after"]
                    assert "--max-streams" in second.json()["error"]["message"]
            finally:
                servable.writer = None


def test_a_drain_waits_for_streams_and_refuses_new_ones(writers, slow):
    with serving(writers, ServerConfig()) as running:
        url = f"{running.url}/v1/completions"
        slow.may_write.release(1)
        with httpx.stream("POST", url, json=BODY) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            drain = asyncio.run_coroutine_threadsafe(running.service.drain(20), running.loop)
            wait_until(lambda: running.service.is_draining)
            assert httpx.post(url, json=BODY).status_code == 503
            assert not drain.done()
            slow.may_write.release(4)
            assert list(lines)[-2] == "data: [DONE]"
        assert drain.result(10) == 0


def test_a_drain_that_takes_too_long_cuts_streams_off_with_an_error(writers, slow):
    with serving(writers, ServerConfig()) as running:
        slow.may_write.release(1)
        with httpx.stream("POST", f"{running.url}/v1/completions", json=BODY) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            drain = asyncio.run_coroutine_threadsafe(running.service.drain(0.01), running.loop)
            last = [line for line in lines if line][-1]
        assert "stopped before this request was finished" in last
        assert drain.result(10) == 1 and slow.is_closed.is_set()


def test_an_error_in_the_middle_is_an_error_of_our_client(embedded, slow):
    slow.may_write.release(1)
    with Client(embedded.url) as client:
        parts = client.write("writer", "a", max_tokens=5)
        assert next(parts).text == "x"
        slow.error = ValueError("a secret")
        with pytest.raises(ServerFailed, match="ended the stream.*its log has the details"):
            next(parts)
        slow.error = None
        slow.may_write.release(1)
        parts = client.write("writer", "a", max_tokens=5)
        next(parts)
        slow.is_closed.clear()
        parts.close()
        assert slow.is_closed.wait(5)


def test_the_limit_on_answers_holds_where_none_is_asked_for(writers):
    with serving(writers, ServerConfig(max_answer_tokens=5)) as running:
        for path, more in (
            ("completions", {"prompt": "ab"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "ab"}]}),
        ):
            answer = httpx.post(f"{running.url}/v1/{path}", json={"model": "writer"} | more)
            assert answer.json()["usage"]["completion_tokens"] == 5


def test_an_answer_may_take_as_long_as_it_takes(writers):
    with serving(writers, ServerConfig(request_timeout_seconds=0)) as running:
        answer = httpx.post(f"{running.url}/v1/completions", json=BODY | {"stream": False})
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"]


@pytest.mark.parametrize("prompt", [[5] * 11, [[5] * 11], ["a"] * 11])
def test_lists_have_the_limit_of_texts(writers, prompt):
    with serving(writers, ServerConfig(max_characters=10)) as running:
        body = {"model": "writer", "prompt": prompt}
        answer = httpx.post(f"{running.url}/v1/completions", json=body)
        assert answer.status_code == 400 and "--max-characters" in answer.json()["error"]["message"]


def test_dimensions_are_looked_at_before_anything_is_embedded(embedded, runs):
    body = {"model": "writer", "input": "a", "dimensions": 2}
    answer = httpx.post(f"{embedded.url}/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "dimensions")
    assert "left out or 3" in error["message"]
    assert runs.names == []
