"""Writes many texts at once: continuous batching over the steps of `serving/decoder.py`.

One thread makes step after step: schedule, run, post-process. Callers are coroutines of any event
loop; what they get is handed over once a step.
"""

import asyncio
import functools
import logging
import math
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from model.signatures import FINISH_LENGTH, FINISH_STOP
from model.tokenizers import BEGIN, UNKNOWN
from serving import metrics
from serving.config import ServerConfig
from serving.decoder import Decoder, Staged, Written
from serving.errors import INTERNAL_TEXT, Code, ServingError
from serving.next_tokens import ModelText, Runs
from serving.prefix_cache import PrefixCache
from serving.scheduler import Job, Plan, Scheduler, State
from serving.writing import Assembler, Piece, Request, TokenLogprob

log = logging.getLogger(__name__)

MOST_LEARNED = 2**17  # tokens of a vocabulary whose bytes are asked for at load


@dataclass(eq=False)
class _Stream:
    """One answer on its way to its caller."""

    request: Request
    job: Job
    assembler: Assembler
    loop: asyncio.AbstractEventLoop
    pieces: "asyncio.Queue[Piece | ServingError]" = field(default_factory=asyncio.Queue)
    staged: Staged | None = None  # what was read of it and is in no row
    written: list[int] = field(default_factory=list)
    text: str = ""  # of `written`, for tokenizers that are no concatenation of bytes

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.job.prompt, *self.written)


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
        super().__init__(servable)
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
        if self._spelling and decoder.vocabulary_size <= MOST_LEARNED:
            self._spelling.learn(range(decoder.vocabulary_size))
        self._streams: dict[Job, _Stream] = {}  # of the engine's thread alone, as the scheduler
        self._ready: list[tuple[_Stream, Piece | ServingError]] = []  # to be handed over
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
        prompt = await self._in_thread(self._prompt, request)
        vocabulary = range(self.decoder.vocabulary_size)
        tokens = (BEGIN, *(token if token in vocabulary else UNKNOWN for token in prompt))
        left = min(request.max_tokens, self.context_length - len(tokens))
        if left <= 0:
            yield Assembler(request, num_prompt_tokens=len(prompt)).add([], [], [], FINISH_LENGTH)
            return
        deadline = math.inf if request.deadline is None else request.deadline
        job = Job(tokens, left, request.caller, deadline)
        assembler = Assembler(request, num_prompt_tokens=len(prompt))
        stream = _Stream(request, job, assembler, asyncio.get_running_loop())
        with self._changed:
            self._refuse_when_closing()
            self._new.append(stream)
            self._changed.notify()
        try:
            while True:
                piece = await stream.pieces.get()
                if isinstance(piece, ServingError):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            with self._changed:
                self._left.append(stream)
                self._changed.notify()

    def close(self) -> None:
        """Ends the thread; who still writes or waits gets UNAVAILABLE."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

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
                log.exception("Model %s: a step of the engine failed; it goes on.", self.name)
                self._fail_running()
            self._hand_over()
        for stream in (*new, *self._streams.values()):
            self._ready.append((stream, _closed(self.name)))
        self._hand_over()

    def step(self) -> None:
        """Schedule, run, post-process."""
        self._take_in()
        plan = self.scheduler.schedule()
        for job in plan.expired:
            stream = self._streams.pop(job)
            message = f"The text was not finished in time; {job.num_written} tokens were written."
            self._ready.append((stream, ServingError(Code.DEADLINE_EXCEEDED, message)))
        self._arrange(plan)
        self._read(plan)
        if plan.writes:
            start = time.perf_counter()
            written = self.decoder.write(len(plan.writes), plan.num_steps)
            self.scheduler.took(written.num_steps, time.perf_counter() - start)
            metrics.observe_generation(self.name, len(plan.writes), written.batch_size)
            self._give_out(plan.writes, written)

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
        for job in plan.admitted:
            stream = self._streams[job]
            if not job.is_put_off:
                blocks = self.prefix_cache.find(job.prompt[:-1])
                stream.staged = self.decoder.empty(len(job.prompt), blocks)
                stream.assembler = Assembler(
                    stream.request,
                    num_prompt_tokens=len(job.prompt) - 1,
                    num_cached_tokens=max(job.num_cached - 1, 0),  # without BEGIN
                )
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
                num_prompt=len(job.prompt),
                left=job.max_tokens - job.num_written,
            )
            stream.staged = None

    def _read(self, plan: Plan) -> None:
        for read in plan.reads:
            stream = self._streams[read.job]
            if stream.staged is None:
                raise RuntimeError("A text reads into nothing")
            staged = self.decoder.read(stream.staged, read.tokens, read.start)
            stream.staged = staged
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
            reason = None
            if written.hit_end[row]:
                reason = FINISH_STOP
            elif job.num_written >= job.max_tokens:
                reason = FINISH_LENGTH
            spelled, stream.text = self._spelled(
                stream.written, tokens, stream.text, is_end=reason is not None
            )
            stream.written += tokens
            piece = stream.assembler.add(
                tokens, spelled, _logprobs(written, row, len(tokens), stream.request), reason
            )
            self._ready.append((stream, piece))
            if piece.finish_reason:
                self.scheduler.leave(job)
                del self._streams[job]

    def _num_cached(self, job: Job) -> int:
        return len(self.prefix_cache.find(job.prompt[:-1])) * self.prefix_cache.block

    def _fail_running(self) -> None:
        """After an error: whoever holds a slot has lost it, whoever waits goes on waiting."""
        for job, stream in list(self._streams.items()):
            if job.state is not State.WAITING or job.is_put_off:
                self.scheduler.leave(job)
                del self._streams[job]
                self._ready.append((stream, ServingError(Code.INTERNAL, INTERNAL_TEXT)))
        self.decoder.reset()

    def _hand_over(self) -> None:
        """Wakes each event loop once, however many of its callers get something."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Piece | ServingError]]] = {}
        for stream, piece in self._ready:
            by_loop.setdefault(stream.loop, []).append((stream, piece))
        self._ready = []
        for loop, pieces in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put, pieces)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                with self._changed:
                    self._left += [stream for stream, _ in pieces]


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


def _put(pieces: list[tuple[_Stream, Piece | ServingError]]) -> None:
    for stream, piece in pieces:
        stream.pieces.put_nowait(piece)


def _closed(name: str) -> ServingError:
    return ServingError(
        Code.UNAVAILABLE, f"Model {name!r} is being unloaded; try again later or elsewhere."
    )


def _logprobs(written: Written, row: int, count: int, request: Request) -> list[TokenLogprob]:
    if request.logprobs is None:
        return []
    num_top = request.logprobs
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
        for step in range(count)
    ]
