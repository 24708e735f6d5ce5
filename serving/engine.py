"""Writes many texts at once: continuous batching over the steps of `serving/decoder.py`.

Two threads, each of which schedules, runs and hands over, again and again: one reads prompts, each
to its first token, while the other writes what follows. Callers are coroutines of any event loop,
woken once a call, and make text of their tokens themselves: the engine's threads do nothing that
somebody else has time for.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import math
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from model.signatures import FINISH_LENGTH, FINISH_STOP
from model.tokenizers import BEGIN
from serving import metrics
from serving.config import ServerConfig
from serving.decoder import Decoder, Staged, Text, Written
from serving.errors import INTERNAL_TEXT, Code, ServingError
from serving.memory import give_back
from serving.next_tokens import ModelText, Runs
from serving.prefix_cache import PrefixCache
from serving.scheduler import Job, Plan, Read, Scheduler, State
from serving.writing import Assembler, Piece, Request, token_logprobs

log = logging.getLogger(__name__)

MOST_LEARNED = 2**17  # tokens of a vocabulary whose bytes are asked for at load

Todo = TypeVar("Todo")  # what one of the threads does next


@dataclass(eq=False)
class _Stream:
    """One answer on its way to its caller."""

    text: Text
    job: Job
    loop: asyncio.AbstractEventLoop
    parts: "asyncio.Queue[_Part | ServingError]" = field(default_factory=asyncio.Queue)
    cached: list[np.ndarray] = field(default_factory=list)  # of its prompt's beginning
    staged: Staged | None = None  # what was read of it and is in no row


@dataclass(frozen=True)
class _Part:
    """What a call wrote of one answer: row `row` of `written`."""

    tokens: list[int]
    reason: str | None  # why the network writes no more
    written: Written
    row: int


class Engine(ModelText):
    """A `Writer` for networks with `decode`: the texts of all callers share the steps.

    A text, seed included, is the one that `serving_default` and `next_tokens` write, as far as
    rounding goes. Closing the iterator of `write` frees the slot, and its row when the call ends.
    """

    def __init__(
        self,
        servable: Runs,
        decoder: Decoder,
        *,
        prefix_cache_bytes: int = 0,
        max_waiting: int = ServerConfig.max_waiting_requests,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Of its own, or those who ask for embeddings would keep those who write waiting.
        self._texts_threads = concurrent.futures.ThreadPoolExecutor(1, f"texts-{servable.name}")
        super().__init__(servable, self._in_own_thread)
        self.name = servable.name
        self.decoder, self._clock = decoder, clock
        self.prefix_cache = PrefixCache(prefix_cache_bytes)
        self.scheduler = Scheduler(
            num_slots=decoder.num_slots,
            chunk=decoder.chunk,
            max_steps=decoder.max_steps,
            max_waiting=max_waiting,
            num_cached=self._num_cached,
            clock=clock,
        )
        self._can_spell = bool(self._spelling) and decoder.vocabulary_size <= MOST_LEARNED
        if self._spelling and self._can_spell:
            self._spelling.learn(range(decoder.vocabulary_size))
        # Held for moments: of the scheduler and of what is here. Notified when something changes.
        self._changed = threading.Condition()
        self._streams: dict[Job, _Stream] = {}  # of those who have not ended
        self._is_closing = False
        plans = (
            ("read", self.scheduler.next_read, self._read),
            ("write", self.scheduler.next_call, self._write),
        )
        self._threads = [
            threading.Thread(target=self._go_on, args=work, name=f"{name}-{self.name}", daemon=True)
            for name, *work in plans
        ]
        for thread in self._threads:
            thread.start()
        _ENGINES.add(self)

    # ------------------------------------------------------------ for callers

    async def write(self, request: Request) -> AsyncGenerator[Piece, None]:
        prompt, draws = await self._in_thread(self._prepare, request)
        tokens = (BEGIN, *prompt)
        left = min(request.max_tokens, self.context_length - len(tokens))
        if left <= 0:
            yield Assembler(request, num_prompt_tokens=len(prompt)).add([], [], [], FINISH_LENGTH)
            return
        deadline = math.inf if request.deadline is None else request.deadline
        job = Job(tokens, left, request.caller, deadline)
        stream = _Stream(Text(request, tokens, draws, left), job, asyncio.get_running_loop())
        with self._changed:
            if self._is_closing:
                raise _closed(self.name)
            self.scheduler.submit(job)
            self._streams[job] = stream
            self._changed.notify_all()
        try:
            async with contextlib.aclosing(self._pieces(stream)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            with self._changed:
                self._end(job)

    async def _in_own_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            future = self._texts_threads.submit(work, *args)
        except RuntimeError as error:  # it was closed
            raise _closed(self.name) from error
        return await asyncio.wrap_future(future)

    def _prepare(self, request: Request) -> tuple[tuple[int, ...], np.ndarray]:
        return self._prompt(request), self.decoder.draws(request.seed)

    async def _pieces(self, stream: _Stream) -> AsyncGenerator[Piece, None]:
        """What the engine's threads hand over, as pieces of text."""
        request, assembler = stream.text.request, None
        written: list[int] = []
        text = ""  # of `written`, for tokenizers that are no concatenation of bytes
        while assembler is None or not assembler.finish_reason:
            part = await stream.parts.get()
            if isinstance(part, ServingError):
                raise part
            if assembler is None:
                assembler = Assembler(
                    request,
                    num_prompt_tokens=len(stream.job.prompt) - 1,
                    num_cached_tokens=max(stream.job.num_cached - 1, 0),  # without BEGIN
                )
            spell = functools.partial(
                self._spelled, written, part.tokens, text, is_end=part.reason is not None
            )
            spelled, text = spell() if self._can_spell else await self._in_thread(spell)
            written += part.tokens
            count, row = len(part.tokens), part.row
            logprobs = token_logprobs(
                part.written.logprobs[:count, row],
                part.written.top_tokens[:count, row],
                part.written.top_logprobs[:count, row],
                request.logprobs,
            )
            yield assembler.add(part.tokens, spelled, logprobs, part.reason)

    def close(self) -> None:
        """Ends the threads; who still writes or waits gets UNAVAILABLE."""
        self._refuse()
        for thread in self._threads:
            thread.join()
        self._texts_threads.shutdown()
        self.decoder.close()
        _ENGINES.discard(self)

    def _refuse(self) -> None:
        """From now on, and whoever is there."""
        with self._changed:
            self._is_closing = True
            for job in list(self._streams):
                self._fail(job, _closed(self.name))
            self._changed.notify_all()

    @property
    def has_ended(self) -> bool:
        """It is closed, or cannot go on: it refuses all."""
        return self._is_closing

    def look(self, read: "Callable[[Engine], int]") -> int:
        """A count of the moment, while nobody changes it."""
        with self._changed:
            return read(self)

    # ------------------------------------------------------------ the engine's threads

    def _go_on(
        self, ask: Callable[[], Todo | None], run: Callable[[Todo, dict[Job, _Stream]], None]
    ) -> None:
        """A thread: schedule, run, hand over, until the engine is closed."""
        try:
            while todo := self._next(ask):
                run(*todo)
        except Exception:
            log.exception("Model %s: the engine cannot go on, its signatures write.", self.name)
            self._refuse()

    def _next(self, ask: Callable[[], Todo | None]) -> tuple[Todo, dict[Job, _Stream]] | None:
        """What there is to do, once there is something, and the streams of that moment: who has
        left since is still among them. None when the engine is closed."""
        with self._changed:
            self._changed.notify_all()  # by what was done last, the other one may have to do
            while not self._is_closing:
                for job in self.scheduler.expired():
                    message = (
                        f"The text was not finished in time; {job.num_written} tokens were written."
                    )
                    self._fail(job, ServingError(Code.DEADLINE_EXCEEDED, message))
                if found := ask():
                    return found, dict(self._streams)
                self._changed.wait()
        return None

    def _read(self, read: Read, streams: dict[Job, _Stream]) -> None:
        """A part of a prompt; with its end comes the first token of the answer."""
        job, stream = read.job, streams[read.job]
        try:
            if stream.staged is None:
                metrics.observe_admission(self.name, job.begun - job.since, job.num_cached)
                stream.staged = self.decoder.empty(len(job.prompt), stream.cached)
                stream.cached = []
            stream.staged, written = self.decoder.read(
                stream.staged, stream.text, read.start, read.count
            )
            staged = stream.staged
            with self._changed:
                self.scheduler.has_read(job, read.count)
                if written:
                    self._give_out((job,), written)
            if written and self.prefix_cache.max_bytes:
                self.prefix_cache.put(job.prompt[:-1], self.decoder.values(staged))
        except Exception:
            log.exception("Model %s: a prompt could not be read; the engine goes on.", self.name)
            with self._changed:
                self._fail(job, ServingError(Code.INTERNAL, INTERNAL_TEXT))

    def _write(self, plan: Plan, streams: dict[Job, _Stream]) -> None:
        """What follows, of all who have a row."""
        try:
            self._arrange(plan, streams)
            if not plan.writes:
                return
            start = time.perf_counter()
            written = self.decoder.write(len(plan.writes), plan.num_steps)
            seconds = time.perf_counter() - start
        except Exception:
            log.exception("Model %s: a call of the engine failed.", self.name)
            self._recover()
            return
        metrics.observe_generation(self.name, len(plan.writes), written.batch_size)
        with self._changed:
            self.scheduler.took(written.num_steps, seconds)
            self._give_out(plan.writes, written)

    def _arrange(self, plan: Plan, streams: dict[Job, _Stream]) -> None:
        """Rows as they are from now on."""
        for job, row in plan.put_off:
            streams[job].staged = self.decoder.take(row)
        for source, target in plan.moves:
            self.decoder.move(source, target)
        for job, row in plan.joins:
            stream = streams[job]
            if stream.staged is None:
                raise RuntimeError("A text joins without what it read")
            self.decoder.put(row, stream.staged, stream.text)
            stream.staged = None

    def _recover(self) -> None:
        """After a call that failed: whoever was in a row has lost what was there, all others go on.

        Raises if the decoder cannot begin anew.
        """
        with self._changed:
            for job, stream in list(self._streams.items()):
                is_lost = stream.staged is None and job.num_written > 0
                if job.state is State.WRITING or is_lost:
                    self._fail(job, ServingError(Code.INTERNAL, INTERNAL_TEXT))
        self.decoder.reset()

    # ------------------------------------------------------------ with `_changed` held

    def _num_cached(self, job: Job) -> int:
        stream = self._streams[job]
        stream.cached = self.prefix_cache.find(job.prompt[:-1])
        return len(stream.cached) * self.prefix_cache.block

    def _give_out(self, jobs: Sequence[Job], written: Written) -> None:
        parts: list[tuple[_Stream, _Part | ServingError]] = []
        for row, job in enumerate(jobs):
            stream = self._streams.get(job)
            if stream is None:  # its caller has left meanwhile
                continue
            tokens = written.tokens[: int(written.num_tokens[row]), row].tolist()
            self.scheduler.has_written(job, len(tokens))
            stream.text.written += tokens
            reason = None
            if written.hit_end[row]:
                reason = FINISH_STOP
            elif job.num_written >= job.max_tokens:
                reason = FINISH_LENGTH
            parts.append((stream, _Part(tokens, reason, written, row)))
            if reason:
                self._end(job)
        self._hand_over(parts)

    def _fail(self, job: Job, error: ServingError) -> None:
        if stream := self._streams.get(job):
            self._end(job)
            self._hand_over([(stream, error)])

    def _end(self, job: Job) -> None:
        if self._streams.pop(job, None):
            self.scheduler.leave(job)
            self._changed.notify_all()

    def _hand_over(self, parts: list[tuple[_Stream, "_Part | ServingError"]]) -> None:
        """Wakes each event loop once, however many of its callers get something."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, _Part | ServingError]]] = {}
        for stream, part in parts:
            by_loop.setdefault(stream.loop, []).append((stream, part))
        for loop, some in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, some)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                for stream, _ in some:
                    self._end(stream.job)


def engine_for(
    servable: Runs, path: Path, config: ServerConfig, check: Callable[[], None] = lambda: None
) -> Engine:
    """The engine of a loaded version, compiled and warm, with the server's settings.

    `check` is called every few seconds and ends it by what it raises.
    """

    def progress(text: str) -> None:
        check()
        log.info("Model %s: %s", servable.name, text)

    decoder = Decoder(
        path,
        num_slots=config.generation_slots,
        max_steps=config.generation_steps,
        chunk=config.generation_chunk_tokens,
        progress=progress,
    )
    give_back()
    try:
        return Engine(
            servable,
            decoder,
            prefix_cache_bytes=config.prefix_cache_bytes,
            max_waiting=config.max_waiting_requests,
        )
    except BaseException:  # the version was closed meanwhile
        decoder.close()
        raise


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _watch(name: str, read: Callable[[Engine], int]) -> None:
    def total() -> int:
        return sum(engine.look(read) for engine in list(_ENGINES))

    metrics.watch(f"/stepwise/serving/generation_{name}", total)


_watch("waiting", lambda engine: engine.scheduler.num_waiting)
_watch("slots", lambda engine: engine.scheduler.num_slots)
_watch("free_slots", lambda engine: engine.scheduler.num_free)
_watch("cache_bytes", lambda engine: engine.decoder.num_bytes)
_watch("prefix_cache_bytes", lambda engine: engine.prefix_cache.num_bytes)


def _put(parts: list[tuple[_Stream, _Part | ServingError]]) -> None:
    for stream, part in parts:
        stream.parts.put_nowait(part)


def _closed(name: str) -> ServingError:
    return ServingError(
        Code.UNAVAILABLE, f"The engine of model {name!r} has ended; try again, or elsewhere."
    )
