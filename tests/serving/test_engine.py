"""The engine over a tiny exported network: many texts at once are the texts one by one."""

import asyncio
import contextlib
import re
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
from serving import metrics, servable
from serving.config import ServerConfig
from serving.decoder import Decoder, Text
from serving.engine import Engine
from serving.errors import Code, ServingError
from serving.next_tokens import NextTokensWriter
from serving.repository import Repository
from serving.writing import Request
from tests.tiny_writer import tiny_writer as make_writer

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
    assert not any(thread.is_alive() for thread in one.writer._threads)


@pytest.fixture(scope="module")
def engine(loaded):
    """Of two slots: with more texts than that, some wait."""
    with pytest.MonkeyPatch.context() as patch:  # others that end have its decoder, too
        patch.setattr(loaded.writer.decoder, "close", lambda: None)
        yield loaded.writer


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


@pytest.fixture
def reading(engine, monkeypatch):
    """Whether a prompt is being read, which waits to go on."""
    read, has_begun, may_go_on = engine.decoder.read, threading.Event(), threading.Event()

    def read_when_allowed(*args):
        has_begun.set()
        assert may_go_on.wait(10)
        return read(*args)

    monkeypatch.setattr(engine.decoder, "read", read_when_allowed)
    yield SimpleNamespace(has_begun=has_begun, may_go_on=may_go_on)
    may_go_on.set()


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
        # Where a draw lies on the boundary of two tokens, another machine's rounding may take the
        # other one: then this request needs another seed.
        advice = f"{request}: if this fails on one kind of machine alone, give it another seed"
        assert text_of(pieces) == text_of(expected), advice
        for name in ("tokens", "logprobs"):
            ours, theirs = (
                [x for piece in some for x in getattr(piece, name)] for some in (pieces, expected)
            )
            if name == "tokens":
                assert ours == theirs, advice
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
    # Its device is named, or TensorFlow draws a number to see one, which other tests may forbid.
    first, second = (make(stage="hlo", device_name="/device:CPU:0") for make in made)
    assert first == second


@pytest.mark.parametrize("weights", [s.WEIGHTS_BFLOAT16, s.WEIGHTS_INT8])
def test_greedy_texts_of_stored_weights_are_those_of_their_serving_default(
    weights, loaded, tmp_path
):
    """An export of what the engine loads, the tokens being those of `loaded`."""
    learner = make_writer()
    learner.store_weights(weights)
    served = (s.DECODE, s.NEXT_TOKENS)
    functions = {name: learner.endpoints[name].get_concrete_function() for name in served}
    root = tf.Module()
    root.variables_read = [v for function in functions.values() for v in function.variables]
    tf.saved_model.save(root, str(tmp_path), signatures=functions)
    decoder = Decoder(tmp_path, num_slots=1, max_steps=8, chunk=8)
    engine = Engine(loaded, decoder)
    prompts = ["abc", "the quick brown", "猫"]
    requests = [Request(prompt=text, max_tokens=12, temperature=0.0) for text in prompts]
    written = collect(engine, *requests)
    engine.close()
    assert not any(tf.size(variable.read_value()) for variable in decoder._cache)  # given back
    outputs = learner.endpoints[s.SERVING_DEFAULT](
        tf.constant(prompts), [12] * 3, [0.0] * 3, [0] * 3, [1.0] * 3, [0] * 3
    )
    expected = [text.decode() for text in outputs[s.TEXT].numpy()]
    assert [text_of(pieces) for pieces in written] == expected


# First tokens, which the thread that reads writes -------------------------------------------------


def test_a_first_token_waits_for_nobody_who_writes(engine, held):
    """Not for the call that runs, and the next in turn not for a slot either."""

    async def write():
        streams = [
            engine.write(Request(prompt="abc", max_tokens=20, temperature=0.0, seed=seed))
            for seed in range(3)
        ]
        first = []
        for stream in streams:
            first.append(await anext(stream))
            await asyncio.to_thread(wait_until, lambda: held.calls)
        assert len(held.calls) == 1 and engine.scheduler.num_waiting == 1
        ended = collect_one(Request(prompt="abc", max_tokens=1))
        held.may_write.release(1000)
        rest = [[piece async for piece in stream] for stream in streams]
        return [[one, *more] for one, more in zip(first, rest, strict=True)], await ended

    async def collect_one(request):
        return [piece async for piece in engine.write(request)]

    texts, ended = asyncio.run(write())
    held.may_write.release(1000)
    (alone,) = collect(engine, Request(prompt="abc", max_tokens=20, temperature=0.0))
    assert [text_of(pieces) for pieces in texts] == [text_of(alone)] * 3
    assert [len(pieces[0].tokens) for pieces in texts] == [1] * 3
    assert ended[-1].finish_reason == s.FINISH_LENGTH


def test_whose_first_token_is_the_last_takes_no_row(engine, loaded, held):
    """By its `max_tokens`, and by an END, which at this temperature is drawn by small numbers."""
    seed = next(seed for seed in range(1000) if engine.decoder.draws(seed)[0] < 0.005)
    requests = [
        Request(prompt="abc", max_tokens=1, temperature=1.0, seed=1, logprobs=2),
        Request(prompt="abc", max_tokens=9, temperature=100.0, seed=seed, logprobs=2),
    ]
    for request, pieces in zip(requests, collect(engine, *requests), strict=True):
        (expected,) = collect(NextTokensWriter(loaded), request)
        assert [piece.tokens for piece in pieces] == [piece.tokens for piece in expected]
        assert pieces[-1].finish_reason == expected[-1].finish_reason
    assert (pieces[-1].tokens, pieces[-1].finish_reason) == ((), s.FINISH_STOP)
    assert not held.calls


# Those who are put off ----------------------------------------------------------------------------


def hogs_and_another(engine, held, monkeypatch):
    """Two texts of one caller, both in rows, of which one is put off for a third; all three."""
    monkeypatch.setattr(engine.scheduler, "patience", 0.0)
    monkeypatch.setattr(engine.scheduler, "quantum", 3)
    monkeypatch.setattr(engine.scheduler, "max_steps", 2)  # or a text ends in the call that is held
    requests = [
        Request(prompt=prompt, max_tokens=26, temperature=1.0, seed=seed, caller=caller)
        for seed, (prompt, caller) in enumerate([("abc", "a"), ("xyzw", "a"), ("mn", "b")])
    ]

    def are_read():
        return [len(stream.text.written) for stream in list(engine._streams.values())] == [1, 1]

    with ThreadPoolExecutor(3) as threads:
        taking = [threads.submit(collect, engine, one) for one in requests[:2]]
        wait_until(lambda: held.calls and are_read())
        if held.calls[0][0] == 1:  # the other one joins in the next call
            held.may_write.release(1)
            wait_until(lambda: len(held.calls) == 2)
        taking.append(threads.submit(collect, engine, requests[2]))
        wait_until(lambda: engine.scheduler.num_waiting == 1)
        held.may_write.release(1000)
        return requests, [done.result(10)[0] for done in taking]


def test_who_is_put_off_goes_on_where_he_was(engine, loaded, held, monkeypatch):
    taken, take = [], engine.decoder.take

    def take_and_tell(row):
        taken.append(row)
        return take(row)

    monkeypatch.setattr(engine.decoder, "take", take_and_tell)
    requests, written = hogs_and_another(engine, held, monkeypatch)
    assert taken, "nobody was put off"
    alone = NextTokensWriter(loaded)
    for request, pieces in zip(requests, written, strict=True):
        assert text_of(pieces) == text_of(*collect(alone, request))


def test_what_is_taken_of_a_row_is_what_its_tokens_left(engine):
    """By the compiled steps alone, the engine being idle; a row's own, wherever it was moved."""
    decoder = engine.decoder

    def read(tokens):
        text = Text(Request(prompt="", temperature=0.0), tokens, decoder.draws(0), 20)
        staged = decoder.empty(len(tokens))
        for start in range(0, len(tokens), decoder.chunk):
            count = min(decoder.chunk, len(tokens) - start)
            staged, first = decoder.read(staged, text, start, count)
        text.written += first.tokens[:, 0].tolist()
        return text, staged

    texts = []
    for row, prompt in enumerate([(2, 5, 6, 7), (2, 9, 8, 11, 14, 5)]):
        text, staged = read(prompt)
        decoder.put(row, staged, text)
        texts.append(text)
    new = decoder.write(2, 5)
    kept = [decoder.take(row) for row in range(2)]
    decoder.move(1, 0)
    kept.append(decoder.take(0))
    decoder.reset()
    for text, row, staged in zip((*texts, texts[1]), (0, 1, 1), kept, strict=True):
        tokens = (*text.prompt, *text.written, *new.tokens[: new.num_tokens[row], row].tolist())
        size = len(tokens) - 1
        assert size == len(text.prompt) + 5
        expected = decoder.values(read(tokens[:-1])[1])(0, size)
        np.testing.assert_allclose(decoder.values(staged)(0, size), expected, atol=1e-5)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["empty", "read"])
def test_a_prompt_that_cannot_be_read_fails_alone(engine, held, monkeypatch, part):
    """Others write on, and the next one is read again."""
    request = Request(prompt="abc", max_tokens=20, temperature=0.0)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(collect, engine, request)
        wait_until(lambda: held.calls)

        def fails(*args):
            raise MemoryError("no room")

        with monkeypatch.context() as patched:
            patched.setattr(engine.decoder, part, fails)
            (error,) = collect(engine, request)
        assert isinstance(error, ServingError) and error.code is Code.INTERNAL
        held.may_write.release(1000)
        (pieces,) = other.result(10)
    (again,) = collect(engine, request)
    assert text_of(again) == text_of(pieces) and pieces[-1].finish_reason


@pytest.mark.parametrize("part", ["take", "put"])
def test_rows_that_cannot_be_arranged_fail_and_the_engine_goes_on(
    engine, held, monkeypatch, caplog, part
):
    """Where somebody is put off, and where he would go on."""
    true_part, calls = getattr(engine.decoder, part), []

    def fails(*args):
        calls.append(args)
        if len(calls) == (1 if part == "take" else 3):
            raise MemoryError("no room")
        return true_part(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine.decoder, part, fails)
        requests, written = hogs_and_another(engine, held, patched)
    failed = [one for one in written if isinstance(one, ServingError)]
    assert failed and {error.code for error in failed} == {Code.INTERNAL}
    assert len(caplog.records) == 1, "what was lost failed another call"
    wait_until(lambda: engine.scheduler.num_free == 2)
    again = collect(engine, *requests)
    assert all(pieces[-1].finish_reason for pieces in again)


def test_who_leaves_on_the_way_to_his_row_harms_nobody(engine, monkeypatch):
    """Between the plan of a call and the call, in which the row goes on for nobody."""
    requests = [Request(prompt="abc", max_tokens=20, temperature=0.0, seed=i) for i in range(2)]
    arrange, left = engine._arrange, []

    def leave_first(plan, streams):
        for job, _ in plan.joins:
            if streams[job].text.request.seed == 1:
                left.append(job)
                with engine._changed:
                    engine._fail(job, ServingError(Code.CANCELLED, "left"))
        arrange(plan, streams)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_arrange", leave_first)
        pieces, error = collect(engine, *requests)
    assert left and error.code is Code.CANCELLED
    (alone,) = collect(engine, requests[0])
    assert text_of(pieces) == text_of(alone)


# What is counted ----------------------------------------------------------------------------------


def shown(name):
    """A number of the metrics' page: of this model, or of all engines."""
    found = re.findall(
        rf'^:stepwise:serving:{name}{{(?:model_name="writer")?}} (\S+)$', metrics.page(), re.M
    )
    return float(found[0]) if found else 0.0


def test_calls_are_counted_by_their_rows(engine, held):
    names = ("rows", "padded_rows", "batch_size_count", "batch_size_sum")
    before = [shown(f"generation_{name}") for name in names]
    held.may_write.release(1000)
    collect(engine, *[Request(prompt="ab", max_tokens=28, seed=seed) for seed in range(5)])
    found = [shown(f"generation_{name}") - b for name, b in zip(names, before, strict=True)]
    rows = [num_rows for num_rows, _ in held.calls]
    assert set(rows) <= {1, 2} and 2 in rows
    assert found == [sum(rows), sum(rows), len(rows), sum(rows)]  # no size between 1 and 2


def test_the_wait_until_a_prompt_is_read_and_what_was_cached_are_counted(loaded, engine, reading):
    """By a clock that goes on by 3 seconds while the second of two waits for the first."""
    names = ("generation_queue_latency_count", "generation_queue_latency_sum", "cached_tokens")
    before, now = [shown(name) for name in names], 100.0
    other = Engine(loaded, engine.decoder, prefix_cache_bytes=10**6, clock=lambda: now)
    request = Request(prompt="abcdefghijklmnopqrst", max_tokens=2)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(collect, other, request)
        assert reading.has_begun.wait(10)
        second = threads.submit(collect, other, request)
        wait_until(lambda: len(other._streams) == 2)
        now += 3.0
        reading.may_go_on.set()
        pieces = [done.result(10)[0] for done in (first, second)]
    other.close()
    assert [one[-1].num_cached_tokens for one in pieces] == [0, 15]
    found = [shown(name) - b for name, b in zip(names, before, strict=True)]
    assert found == [2, pytest.approx(3e6, rel=1e-3), 16]


def test_gauges_show_who_waits_and_what_is_held(loaded, engine, held):
    names = ("waiting", "slots", "free_slots", "cache_bytes", "prefix_cache_bytes")

    def gauges():
        return np.array([shown(f"generation_{name}") for name in names])

    idle = gauges()
    other = Engine(loaded, engine.decoder, prefix_cache_bytes=10**6)
    with ThreadPoolExecutor(4) as threads:
        request = Request(prompt="abcdefghijklmnopq", max_tokens=10)
        taking = [threads.submit(collect, other, request) for _ in range(4)]
        wait_until(lambda: other.scheduler.num_waiting == 2 and other.scheduler.num_free == 0)
        wait_until(lambda: held.calls and other.prefix_cache.num_bytes)
        # Of a token 2 layers keep 2 keys and 2 values of 4 floats: a block of 16 is 2,048 bytes.
        bytes_held = engine.decoder.num_bytes
        assert bytes_held in (32 * 128, 2 * 32 * 128)
        assert (gauges() - idle)[[0, 1, 2, 4]].tolist() == [2, 2, 0, 16 * 128]
        assert shown("generation_cache_bytes") >= 2 * bytes_held  # of two engines with one decoder
        held.may_write.release(1000)
        for done in taking:
            assert done.result(10)[0][-1].finish_reason
    wait_until(lambda: other.scheduler.num_free == 2)
    assert (gauges() - idle)[:3].tolist() == [0, 2, 2]
    other.close()
    assert gauges()[[0, 1, 2, 4]].tolist() == idle[[0, 1, 2, 4]].tolist()


# Who comes and goes -------------------------------------------------------------------------------


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


def test_who_leaves_while_his_prompt_is_read_frees_the_slot(engine, reading):
    async def leave():
        waiting = asyncio.ensure_future(anext(engine.write(Request(prompt="abcd"))))
        await asyncio.to_thread(reading.has_begun.wait, 10)
        waiting.cancel()
        await asyncio.wait([waiting])
        reading.may_go_on.set()

    asyncio.run(leave())
    wait_until(lambda: engine.scheduler.num_free == 2)


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


def test_too_many_that_wait_are_refused(engine, held):
    request = Request(prompt="abc", max_tokens=4, temperature=0.0)
    with ThreadPoolExecutor(3) as threads:
        try:
            writing = threads.submit(collect, engine, *[request] * 2)
            wait_until(lambda: held.calls and engine.scheduler.num_free == 0)
            waiting = threads.submit(collect, engine, *[request] * 40)
            wait_until(lambda: engine.scheduler.num_waiting == 40)
            (error,) = threads.submit(collect, engine, request).result(10)
        finally:
            held.may_write.release(1000)
        assert isinstance(error, ServingError) and error.code is Code.RESOURCE_EXHAUSTED
        for pieces in (*writing.result(10), *waiting.result(10)):
            assert pieces[-1].finish_reason == s.FINISH_LENGTH


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


def test_closing_while_texts_are_written_ends_them(loaded, engine, held):
    """On an engine of its own over the same compiled functions."""
    wait_until(lambda: engine.scheduler.num_free == 2)
    other = Engine(loaded, engine.decoder)
    request = Request(prompt="abc", max_tokens=20, temperature=0.0)
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(collect, other, *[request] * 5)
        try:
            wait_until(lambda: held.calls and len(other._streams) == 5)
            closing = threads.submit(other.close)
            wait_until(lambda: other._is_closing)
        finally:
            held.may_write.release(1000)
        closing.result(10)
        ended = [*writing.result(10), *collect(other, request)]
    assert [error.code for error in ended] == [Code.UNAVAILABLE] * 6


def test_an_engine_that_cannot_begin_anew_has_ended(loaded, engine, monkeypatch):
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
        wait_until(lambda: other.has_ended)
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


def test_signatures_write_where_the_engine_has_ended(repository, engine, loaded, monkeypatch):
    ended = Engine(loaded, engine.decoder)
    ended.close()
    with serving(repository, ServerConfig()) as running:
        before = httpx.post(f"{running.url}/v1/completions", json=LONG).json()["choices"]
        monkeypatch.setattr(loaded, "writer", ended)
        answer = httpx.post(f"{running.url}/v1/completions", json=LONG)
    assert answer.status_code == 200 and answer.json()["choices"] == before


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


def test_a_stream_has_its_own_time_limit(repository, loaded, engine, held, monkeypatch):
    """By a clock of the engine that goes on where its call is held: 1,000 seconds, two calls."""
    ahead = 0
    other = Engine(loaded, engine.decoder, clock=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(loaded, "writer", other)
    config = ServerConfig(request_timeout_seconds=100, stream_timeout_seconds=1000)
    with serving(repository, config) as running:
        body = LONG | {"stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as response:
            lines = filter(None, response.iter_lines())
            assert '"text":' in next(lines)
            wait_until(lambda: len(held.calls) == 1)
            ahead += 500
            held.may_write.release(1)
            wait_until(lambda: len(held.calls) == 2)  # it writes on
            assert other.scheduler.num_free == 1
            ahead += 500
            held.may_write.release(1000)
            *events, last = lines
        assert all('"text":' in event for event in events)
        assert last.startswith('data: {"error":') and "not finished in time" in last
        wait_until(lambda: other.scheduler.num_free == 2 and not other._streams)
        assert len(held.calls) == 2 and not running.service._streams
    other.close()


def test_a_drain_lets_those_who_write_and_wait_finish(repository, engine, held):
    """Three streams for two slots: the third has not begun when the drain does."""

    def take(prompt):
        with httpx.stream("POST", url, json=LONG | {"prompt": prompt, "stream": True}) as response:
            return response.status_code, [line for line in response.iter_lines() if line]

    with serving(repository, ServerConfig()) as running, ThreadPoolExecutor(3) as threads:
        url = f"{running.url}/v1/completions"
        taking = [threads.submit(take, prompt) for prompt in ("ab", "cd", "ef")]
        wait_until(lambda: held.calls and len(engine._streams) == 3)
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
