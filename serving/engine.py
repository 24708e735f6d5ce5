"""Writes many texts at once: continuous batching over the steps of `serving/decoder.py`.

One thread makes step after step: schedule, run, hand over; another reads prompts meanwhile. Callers
are coroutines of any event loop, woken once a step, and make text of their tokens themselves: the
engine's thread does nothing that somebody else has time for.
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
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.signatures import FINISH_LENGTH, FINISH_STOP
from model.tokenizers import BEGIN
from serving import metrics
from serving.config import ServerConfig
from serving.decoder import Decoder, Staged, Written
from serving.errors import INTERNAL_TEXT, Code, ServingError
from serving.next_tokens import ModelText, Runs
from serving.prefix_cache import PrefixCache
from serving.scheduler import Job, Plan, Read, Scheduler, State
from serving.writing import Assembler, Piece, Request, TokenLogprob

log = logging.getLogger(__name__)

MOST_LEARNED = 2**17  # tokens of a vocabulary whose bytes are asked for at load


@dataclass(eq=False)
class _Stream:
    """One answer on its way to its caller."""

    request: Request
    job: Job
    loop: asyncio.AbstractEventLoop
    draws: np.ndarray  # its random numbers, float32 (context length,)
    parts: "asyncio.Queue[_Part | ServingError]" = field(default_factory=asyncio.Queue)
    staged: Staged | None = None  # what was read of it and is in no row
    written: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.job.prompt, *self.written)


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
    rounding goes. Closing the iterator of `write` frees the slot by the end of the step that runs.
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
        self._streams: dict[Job, _Stream] = {}  # of the engine's thread alone, as the scheduler
        self._ready: list[tuple[_Stream, _Part | ServingError]] = []  # to be handed over
        self._reader = concurrent.futures.ThreadPoolExecutor(1, f"reader-{self.name}")
        self._reading: tuple[tuple[Read, ...], concurrent.futures.Future[list[Staged]]] | None
        self._reading = None
        # Held for moments; notified when one of the next three changes.
        self._changed = threading.Condition()
        self._new: list[_Stream] = []
        self._left: list[_Stream] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{self.name}", daemon=True)
        self._thread.start()
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
        stream = _Stream(request, job, asyncio.get_running_loop(), draws)
        with self._changed:
            self._refuse_when_closing()
            self._new.append(stream)
            self._changed.notify()
        try:
            async with contextlib.aclosing(self._pieces(stream)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            with self._changed:
                self._left.append(stream)
                self._changed.notify()

    async def _in_own_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            future = self._texts_threads.submit(work, *args)
        except RuntimeError as error:  # it was closed
            raise _closed(self.name) from error
        return await asyncio.wrap_future(future)

    def _prepare(self, request: Request) -> tuple[tuple[int, ...], np.ndarray]:
        return self._prompt(request), self.decoder.draws(request.seed)

    async def _pieces(self, stream: _Stream) -> AsyncGenerator[Piece, None]:
        """What the engine's thread hands over, as pieces of text."""
        assembler: Assembler | None = None
        written: list[int] = []
        text = ""  # of `written`, for tokenizers that are no concatenation of bytes
        while assembler is None or not assembler.finish_reason:
            part = await stream.parts.get()
            if isinstance(part, ServingError):
                raise part
            if assembler is None:
                assembler = Assembler(
                    stream.request,
                    num_prompt_tokens=len(stream.job.prompt) - 1,
                    num_cached_tokens=max(stream.job.num_cached - 1, 0),  # without BEGIN
                )
            spell = functools.partial(
                self._spelled, written, part.tokens, text, is_end=part.reason is not None
            )
            spelled, text = spell() if self._can_spell else await self._in_thread(spell)
            written += part.tokens
            logprobs = _logprobs(part, stream.request)
            yield assembler.add(part.tokens, spelled, logprobs, part.reason)

    def close(self) -> None:
        """Ends the thread; who still writes or waits gets UNAVAILABLE."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._reader.shutdown()
        self._texts_threads.shutdown()

    def _refuse_when_closing(self) -> None:
        if self._is_closing:
            raise _closed(self.name)

    # ------------------------------------------------------------ the engine's thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._new or self._left or self._is_closing or self._streams):
                    self._changed.wait()
                if self._is_closing:
                    new, self._new = self._new, []
                    break
            try:
                self.step()
            except Exception:
                log.exception("Model %s: a step of the engine failed.", self.name)
                self._recover()
            self._hand_over()
        for stream in (*new, *self._streams.values()):
            self._ready.append((stream, _closed(self.name)))
        self._hand_over()

    def step(self) -> None:
        """Schedule, run, hand over."""
        self._take_in()
        self._end_reads()
        plan = self.scheduler.schedule(may_read=self._reading is None)
        for job in plan.expired:
            stream = self._streams.pop(job)
            message = f"The text was not finished in time; {job.num_written} tokens were written."
            self._ready.append((stream, ServingError(Code.DEADLINE_EXCEEDED, message)))
        self._arrange(plan)
        self._begin_reads(plan)
        if plan.writes:
            start = time.perf_counter()
            written = self.decoder.write(len(plan.writes), plan.num_steps)
            self.scheduler.took(written.num_steps, time.perf_counter() - start)
            metrics.observe_generation(self.name, len(plan.writes), written.batch_size)
            self._give_out(plan.writes, written)
        elif self._reading:
            concurrent.futures.wait([self._reading[1]])

    def _take_in(self) -> None:
        with self._changed:
            new, self._new = self._new, []
            left, self._left = self._left, []
        for stream in new:
            try:
                self.scheduler.submit(stream.job)
                self._streams[stream.job] = stream
            except ServingError as error:
                self._ready.append((stream, error))
        for stream in left:
            if self._streams.pop(stream.job, None):
                self.scheduler.leave(stream.job)

    def _arrange(self, plan: Plan) -> None:
        """Slots and rows as they are from now on."""
        for job, row in plan.put_off:
            self._streams[job].staged = self.decoder.take(row)
        for job in plan.begun:
            blocks = self.prefix_cache.find(job.prompt[:-1])
            self._streams[job].staged = self.decoder.empty(len(job.prompt), blocks)
        for job in plan.admitted:
            if not job.is_put_off:
                metrics.observe_admission(self.name, job.admitted - job.since, job.num_cached)
        for source, target in plan.moves:
            self.decoder.move(source, target)
        for job in plan.joins:
            stream = self._streams[job]
            if job.row is None or stream.staged is None:
                raise RuntimeError("A text joins without a row or without what it read")
            self.decoder.put(
                job.row,
                stream.staged,
                stream.request,
                stream.tokens,
                stream.draws,
                num_prompt=len(job.prompt),
                left=job.max_tokens - job.num_written,
            )
            stream.staged = None

    def _begin_reads(self, plan: Plan) -> None:
        if not plan.reads:
            return
        work = []
        for read in plan.reads:
            staged = self._streams[read.job].staged
            if staged is None:
                raise RuntimeError("A text reads into nothing")
            work.append((staged, read.tokens, read.start))
        self._reading = plan.reads, self._reader.submit(self._read, work)

    def _read(self, work: list[tuple[Staged, tuple[int, ...], int]]) -> list[Staged]:
        """In the reader's thread."""
        return [self.decoder.read(*one) for one in work]

    def _end_reads(self) -> None:
        """Takes what was read, if all of it was."""
        if self._reading is None or not self._reading[1].done():
            return
        (reads, future), self._reading = self._reading, None
        try:
            found = future.result()
        except Exception:
            log.exception("Model %s: prompts could not be read; the engine goes on.", self.name)
            self._fail([read.job for read in reads])
            return
        for read, staged in zip(reads, found, strict=True):
            if read.job not in self._streams:  # its caller has left meanwhile
                continue
            self._streams[read.job].staged = staged
            self.scheduler.has_read(read.job, read.count)
            if not read.job.num_unread and self.prefix_cache.max_bytes:
                self.prefix_cache.put(
                    read.job.prompt[:-1],
                    functools.partial(self.decoder.values, staged),
                )

    def _give_out(self, jobs: tuple[Job, ...], written: Written) -> None:
        for row, job in enumerate(jobs):
            stream = self._streams[job]
            tokens = written.tokens[: int(written.num_tokens[row]), row].tolist()
            self.scheduler.has_written(job, len(tokens))
            stream.written += tokens
            reason = None
            if written.hit_end[row]:
                reason = FINISH_STOP
            elif job.num_written >= job.max_tokens:
                reason = FINISH_LENGTH
            self._ready.append((stream, _Part(tokens, reason, written, row)))
            if reason:
                self.scheduler.leave(job)
                del self._streams[job]

    def _num_cached(self, job: Job) -> int:
        return len(self.prefix_cache.find(job.prompt[:-1])) * self.prefix_cache.block

    def _recover(self) -> None:
        """After an error: whoever holds a slot has lost it, whoever waits goes on waiting. If the
        decoder cannot begin anew, the engine ends and refuses all."""
        self._fail(
            [job for job in self._streams if job.state is not State.WAITING or job.is_put_off]
        )
        try:
            self.decoder.reset()
        except Exception:
            log.exception("Model %s: the engine cannot go on; load the version anew.", self.name)
            with self._changed:
                self._is_closing = True

    def _fail(self, jobs: list[Job]) -> None:
        for job in jobs:
            if stream := self._streams.pop(job, None):
                self.scheduler.leave(job)
                self._ready.append((stream, ServingError(Code.INTERNAL, INTERNAL_TEXT)))

    def _hand_over(self) -> None:
        """Wakes each event loop once, however many of its callers get something."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, _Part | ServingError]]] = {}
        for stream, part in self._ready:
            by_loop.setdefault(stream.loop, []).append((stream, part))
        self._ready = []
        for loop, parts in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, parts)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                with self._changed:
                    self._left += [stream for stream, _ in parts]


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
    return Engine(
        servable,
        decoder,
        prefix_cache_bytes=config.prefix_cache_bytes,
        max_waiting=config.max_waiting_requests,
    )


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _watch(name: str, read: Callable[[Engine], int]) -> None:
    metrics.watch(f"/stepwise/serving/generation_{name}", lambda: sum(map(read, list(_ENGINES))))


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
        Code.UNAVAILABLE, f"Model {name!r} is being unloaded; try again later or elsewhere."
    )


def _logprobs(part: _Part, request: Request) -> list[TokenLogprob]:
    if request.logprobs is None:
        return []
    written, row, num_top = part.written, part.row, request.logprobs
    return [
        TokenLogprob(
            float(written.logprobs[step, row]),
            tuple(
                zip(
                    written.top_tokens[step, row, :num_top].tolist(),
                    written.top_logprobs[step, row, :num_top].tolist(),
                    strict=True,
                )
            ),
        )
        for step in range(len(part.tokens))
    ]
