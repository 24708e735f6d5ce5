"""The engine over a tiny exported network: many texts at once are the texts one by one."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import tensorflow as tf
from openai_server import serving

from model import signatures as s
from serving import servable
from serving.config import ServerConfig
from serving.engine import Engine
from serving.errors import Code, ServingError
from serving.next_tokens import NextTokensWriter
from serving.repository import Repository
from serving.writing import Request

pytestmark = pytest.mark.xdist_group("tiny_writer")  # an engine is compiled once, in one process

SETTINGS = ServerConfig(
    generation_slots=2,
    generation_chunk_tokens=8,
    max_waiting_requests=40,
    enable_model_warmup=False,
    wait_for_engine=True,
)


@pytest.fixture(scope="module")
def loaded(writer_exports):
    one = servable.loader(SETTINGS)("writer", 1, writer_exports / "writer" / "1")
    yield one
    one.close()
    assert not one.writer._thread.is_alive()


@pytest.fixture(scope="module")
def engine(loaded):
    """Of two slots: with more texts than that, some wait."""
    return loaded.writer


@pytest.fixture(autouse=True)
def all_slots_are_free_again(engine):
    yield
    wait_until(lambda: engine.scheduler.num_free == 2 and not engine._streams)


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def collect(writer, *requests):
    """The pieces of each request, all of them written at once; or the error that ended it."""

    async def take(request):
        pieces = []
        async with contextlib.aclosing(writer.write(request)) as stream:
            async for piece in stream:
                pieces.append(piece)
        return pieces

    async def take_all():
        return await asyncio.gather(*map(take, requests), return_exceptions=True)

    return asyncio.run(take_all())


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


MIXED = [
    Request(prompt="abc", max_tokens=12, temperature=0.0),
    Request(prompt="the quick brown fox", max_tokens=9, temperature=1.0, seed=1, logprobs=2),
    Request(prompt="", max_tokens=20, temperature=0.7, top_k=5, seed=2),
    Request(prompt="猫在", max_tokens=15, temperature=1.3, top_p=0.8, seed=-3),
    Request(prompt="hello", max_tokens=14, temperature=1.0, min_p=0.1, seed=4, stop=("e", "猫")),
    Request(prompt="xyz", max_tokens=18, temperature=0.0, repetition_penalty=1.5),
    Request(prompt="a" * 50, max_tokens=10, temperature=1.0, seed=6, presence_penalty=1.0),
    Request(prompt="m n", max_tokens=25, temperature=1.0, seed=7, frequency_penalty=0.7),
    Request(prompt="one", max_tokens=1, temperature=1.0, seed=8),
    Request(prompt="none", max_tokens=0),
]


def test_each_of_many_texts_at_once_is_its_text_alone(engine, loaded):
    """Greedy and drawn, of all settings; alone is by `next_tokens`, without cache or batch."""
    together = collect(engine, *MIXED * 2)
    alone = NextTokensWriter(loaded)
    for request, pieces in zip(MIXED * 2, together, strict=True):
        (expected,) = collect(alone, request)
        assert text_of(pieces) == text_of(expected), request
        for name in ("tokens", "logprobs"):
            ours, theirs = (
                [x for piece in some for x in getattr(piece, name)] for some in (pieces, expected)
            )
            if name == "tokens":
                assert ours == theirs
            else:
                assert (
                    len(ours)
                    == len(theirs)
                    == (request.logprobs is not None)
                    * len([x for piece in pieces for x in piece.tokens])
                )
                np.testing.assert_allclose(
                    [x.logprob for x in ours], [x.logprob for x in theirs], atol=1e-4
                )
                assert [[t for t, _ in x.top] for x in ours] == [
                    [t for t, _ in x.top] for x in theirs
                ]
        assert pieces[-1].finish_reason == expected[-1].finish_reason
        assert pieces[-1].num_prompt_tokens == expected[-1].num_prompt_tokens
        assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_greedy_and_drawn_texts_are_those_of_serving_default(engine, loaded):
    prompts = ["abc", "once upon", "", "猫"] * 2
    temperature = np.array([0.0] * 4 + [1.0] * 4, np.float32)
    outputs = loaded.run(
        s.SERVING_DEFAULT,
        {
            s.PROMPT: np.array([text.encode() for text in prompts], object),
            s.MAX_TOKENS: np.full(8, 16, np.int32),
            s.TEMPERATURE: temperature,
            s.TOP_K: np.full(8, 20, np.int32),
            s.TOP_P: np.full(8, 0.95, np.float32),
            s.SEED: np.arange(8, dtype=np.int32),
        },
    )
    requests = [
        Request(prompt=p, max_tokens=16, temperature=float(t), top_k=20, top_p=0.95, seed=i)
        for i, (p, t) in enumerate(zip(prompts, temperature, strict=True))
    ]
    written = collect(engine, *requests)
    expected = [bytes(text).decode() for text in outputs[s.TEXT]]
    assert [text_of(pieces) for pieces in written] == expected
    assert [sum(len(p.tokens) for p in pieces) for pieces in written] == outputs[
        s.NUM_TOKENS
    ].tolist()


def test_what_prompts_begin_with_is_read_once(engine):
    prompt = "zyxwvutsrqponmlkjih"
    request = Request(prompt=prompt, max_tokens=10, temperature=1.0, seed=5)
    (first,) = collect(engine, request)
    (second,) = collect(engine, request)
    (other,) = collect(engine, Request(prompt=prompt[:-1] + "!", max_tokens=2))
    assert first[-1].num_cached_tokens == 0
    assert second[-1].num_cached_tokens == 15  # a block of 16, less the begin
    assert other[-1].num_cached_tokens == 15
    assert text_of(first) == text_of(second)


def test_moving_other_rows_compiles_nothing(engine):
    """A row's number is read when the program runs, not compiled into it."""
    move = tf.function(engine.decoder._move_row, jit_compile=True, autograph=False)
    made = [
        move.experimental_get_compiler_ir(tf.constant(source), tf.constant(target))
        for source, target in ((1, 0), (0, 1))
    ]
    first, second = (make(stage="hlo") for make in made)
    assert first == second


def test_nobody_waits_while_a_prompt_is_read(engine, monkeypatch):
    """A prompt of two pieces, neither of which is read before the other text is finished."""
    read, may_read = engine.decoder.read, threading.Event()

    def read_later(*args):
        assert may_read.wait(10)
        return read(*args)

    async def write():
        short = engine.write(Request(prompt="", max_tokens=30, seed=1))
        await anext(short)
        monkeypatch.setattr(engine.decoder, "read", read_later)
        long = asyncio.ensure_future(anext(engine.write(Request(prompt="abcdefghijkl"))))
        pieces = [piece async for piece in short]
        assert not long.done()
        may_read.set()
        return pieces, await long

    pieces, first = asyncio.run(write())
    assert pieces[-1].finish_reason and first.tokens


def test_who_leaves_while_his_prompt_is_read_frees_the_slot(engine, monkeypatch):
    read, is_reading, may_read = engine.decoder.read, threading.Event(), threading.Event()

    def read_later(*args):
        is_reading.set()
        assert may_read.wait(10)
        return read(*args)

    monkeypatch.setattr(engine.decoder, "read", read_later)

    async def leave():
        waiting = asyncio.ensure_future(anext(engine.write(Request(prompt="abcd"))))
        await asyncio.to_thread(is_reading.wait, 10)
        waiting.cancel()
        await asyncio.wait([waiting])
        may_read.set()

    asyncio.run(leave())
    wait_until(lambda: engine.scheduler.num_free == 2 and engine._reading is None)


def test_who_leaves_frees_the_slot(engine):
    async def leave():
        streams = [engine.write(Request(prompt="ab", max_tokens=28, seed=i)) for i in range(2)]
        for stream in streams:
            await anext(stream)
        for stream in streams:
            await stream.aclose()

    asyncio.run(leave())
    wait_until(lambda: engine.scheduler.num_free == 2)


def test_whose_loop_has_ended_frees_the_slot(engine):
    """A caller that is gone without a word, as a crashed loop leaves it."""
    loop = asyncio.new_event_loop()
    stream = engine.write(Request(prompt="ab", max_tokens=28))
    loop.run_until_complete(anext(stream))
    loop.close()
    wait_until(lambda: engine.scheduler.num_free == 2)
    del stream


def test_a_deadline_ends_a_text(engine):
    (error,) = collect(engine, Request(prompt="ab", max_tokens=28, deadline=time.monotonic() - 1.0))
    assert isinstance(error, ServingError) and error.code is Code.DEADLINE_EXCEEDED


def test_too_many_that_wait_are_refused(engine):
    answers = collect(engine, *[Request(prompt="ab", max_tokens=28, seed=i) for i in range(120)])
    errors = [answer for answer in answers if isinstance(answer, ServingError)]
    assert {error.code for error in errors} == {Code.RESOURCE_EXHAUSTED}
    assert all(a[-1].finish_reason for a in answers if not isinstance(a, ServingError))


def test_an_error_in_a_step_fails_who_was_running_and_the_engine_goes_on(engine, monkeypatch):
    request = Request(prompt="abc", max_tokens=20, temperature=0.0)
    (expected,) = collect(engine, request)
    write, calls = engine.decoder.write, []

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("a step that fails")
        return write(*args)

    monkeypatch.setattr(engine.decoder, "write", fail_once)
    (error,) = collect(engine, request)
    assert isinstance(error, ServingError) and error.code is Code.INTERNAL
    assert "a step that fails" not in error.message
    (again,) = collect(engine, request)
    assert text_of(again) == text_of(expected)


@pytest.mark.parametrize("token", [0, -1, 10**12, "V"])
def test_tokens_that_the_vocabulary_has_not_are_refused(engine, loaded, token):
    size = engine.decoder.vocabulary_size
    token = size if token == "V" else token
    known = {name: sig for name, sig in loaded.signatures.items() if name != s.DECODE}
    # Without a cache the manifest's word is what there is.
    without_cache = SimpleNamespace(name="writer", signatures=known, shared=loaded.shared)
    for writer in (engine, NextTokensWriter(loaded), NextTokensWriter(without_cache)):
        (error,) = collect(writer, Request(prompt=(7, size - 1, token, -5), max_tokens=2))
        assert isinstance(error, ServingError) and error.code is Code.INVALID_ARGUMENT
        assert f"from 1 to {size - 1}: its vocabulary has {size}" in error.message
        assert error.message.endswith(f"Received: {token}")


def test_a_version_writes_by_its_signatures_until_its_engine_is_there(loaded, monkeypatch):
    """`loaded` has one already, which stands in for what a thread beside makes."""
    monkeypatch.setattr(loaded, "writer", None)
    may_end = threading.Event()

    def make(check):
        may_end.wait(10)
        return engine

    engine = object()
    thread = loaded.make_writer(make)
    assert loaded.writer is None
    may_end.set()
    thread.join(10)
    assert loaded.writer is engine

    def fail(check):
        raise RuntimeError("no such shape")

    loaded.writer = None
    loaded.make_writer(fail).join(10)
    assert loaded.writer is None


def test_an_engine_that_nobody_wants_any_more_is_not_made():
    closed, made = [], []

    class Late:
        def close(self):
            closed.append(True)

    one = servable.Servable("writer", 1, SimpleNamespace(close=lambda: None), {})
    going = threading.Event()

    def ask(check):
        going.wait(10)
        check()
        made.append(True)

    def ask_nobody(check):
        going.wait(10)
        return Late()

    threads = [one.make_writer(make) for make in (ask, ask_nobody)]
    one.close()
    going.set()
    for thread in threads:
        thread.join(10)
    assert (made, closed, one.writer) == ([], [True], None)


def test_closing_while_texts_are_written_ends_them(loaded, engine):
    """On an engine of its own over the same compiled functions."""
    wait_until(lambda: engine.scheduler.num_free == 2)
    other = Engine(loaded, engine.decoder)

    async def close_meanwhile():
        has_begun = asyncio.Event()

        async def take(request):
            async with contextlib.aclosing(other.write(request)) as stream:
                async for _ in stream:
                    has_begun.set()

        requests = [Request(prompt="ab", max_tokens=28, seed=seed) for seed in range(5)]
        taking = [asyncio.ensure_future(take(request)) for request in requests]
        await has_begun.wait()
        await asyncio.to_thread(other.close)
        return await asyncio.gather(*taking, take(requests[0]), return_exceptions=True)

    ended = [error for error in asyncio.run(close_meanwhile()) if error is not None]
    assert len(ended) >= 2, "all texts were finished before the engine was closed"
    assert {error.code for error in ended} == {Code.UNAVAILABLE}


def test_an_engine_that_cannot_begin_anew_refuses(loaded, engine, monkeypatch):
    wait_until(lambda: engine.scheduler.num_free == 2)
    other = Engine(loaded, engine.decoder)

    def fails(*args):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine.decoder, "write", fails)
        patched.setattr(engine.decoder, "reset", fails)
        request = Request(prompt="ab", max_tokens=4)
        (error,) = collect(other, request)
        assert error.code is Code.INTERNAL
        wait_until(lambda: not other._thread.is_alive())
        (error,) = collect(other, request)
        assert error.code is Code.UNAVAILABLE
    other.close()
    engine.decoder.reset()


# Over HTTP ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(loaded, writer_exports):
    repository = Repository(ServerConfig(exports=writer_exports), lambda *_: loaded)
    repository.start()
    wait_until(lambda: repository.readiness()[0])
    yield repository
    assert repository.stop(10)


@pytest.fixture
def held(engine, monkeypatch):
    """How many more steps the engine may write, and the calls that it made."""
    write, may_write, calls = engine.decoder.write, threading.Semaphore(0), []

    def write_when_allowed(*args):
        calls.append(args)
        assert may_write.acquire(timeout=10)
        return write(*args)

    monkeypatch.setattr(engine.decoder, "write", write_when_allowed)
    yield SimpleNamespace(may_write=may_write, calls=calls)
    may_write.release(1000)


LONG = {"model": "writer", "prompt": "ab", "max_tokens": 28, "temperature": 0.0}


def test_a_stream_over_http_is_the_text_at_once(repository, engine):
    settings = LONG | {"prompt": "the fox", "temperature": 0.9, "seed": 3, "n": 2, "logprobs": 1}
    with (
        serving(repository, ServerConfig()) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = client.completions.create(**settings)
        options = {"include_usage": True}
        parts = list(client.completions.create(**settings, stream=True, stream_options=options))
        (greedy,) = client.completions.create(**LONG).choices
    for choice in whole.choices:
        own = [part.choices[0] for part in parts if part.choices]
        own = [one for one in own if one.index == choice.index]
        assert len(own) > 2 and "".join(one.text for one in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        tokens = [token for one in own if one.logprobs for token in one.logprobs.tokens]
        assert tokens == choice.logprobs.tokens
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens > 20
    (pieces,) = collect(engine, Request(prompt="ab", max_tokens=28, temperature=0.0))
    assert greedy.text == text_of(pieces)


def test_a_token_that_the_vocabulary_has_not_is_a_400(repository, engine):
    size = engine.decoder.vocabulary_size
    with serving(repository, ServerConfig()) as running:
        for path, field in (("completions", "prompt"), ("embeddings", "input")):
            for rows in ([[7], [5, size]], [5, size]):
                body = {"model": "writer", field: rows}
                answer = httpx.post(f"{running.url}/v1/{path}", json=body)
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, field)
                assert error["message"] == (
                    f"{field} must be of tokens of the model, from 1 to {size - 1}: "
                    f"its vocabulary has {size}. Received: {size}"
                )


def test_who_hangs_up_frees_the_slot_within_a_step(repository, engine, held):
    with serving(repository, ServerConfig()) as running:
        held.may_write.release(1)
        body = LONG | {"stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as response:
            assert next(response.iter_lines()).startswith("data: {")
            wait_until(lambda: len(held.calls) == 2)  # it writes on
            assert engine.scheduler.num_free == 1
        wait_until(lambda: not running.service._streams)
        held.may_write.release(1)
        wait_until(lambda: engine.scheduler.num_free == 2)
        assert len(held.calls) == 2, "it went on for nobody"


def test_a_drain_lets_those_who_write_and_wait_finish(repository, engine, held):
    """Three streams for two slots: the third has not begun when the drain does."""

    def take(prompt):
        with httpx.stream("POST", url, json=LONG | {"prompt": prompt, "stream": True}) as response:
            return response.status_code, [line for line in response.iter_lines() if line]

    with serving(repository, ServerConfig()) as running, ThreadPoolExecutor(3) as threads:
        url = f"{running.url}/v1/completions"
        taking = [threads.submit(take, prompt) for prompt in ("ab", "cd", "ef")]
        wait_until(lambda: held.calls and len(engine._new) + len(engine._streams) == 3)
        drain = asyncio.run_coroutine_threadsafe(running.service.drain(20), running.loop)
        wait_until(lambda: running.service.is_draining)
        assert httpx.post(url, json=LONG).status_code == 503
        assert not drain.done()
        held.may_write.release(1000)
        for done in taking:
            status, lines = done.result(10)
            assert (status, lines[-1]) == (200, "data: [DONE]")
            assert '"finish_reason":"' in lines[-2]
        assert drain.result(10) == 0
