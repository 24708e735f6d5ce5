"""What the REST and the gRPC front end share: the models, the threads that run them, the drain."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from serving import metrics
from serving.batching import configured_parameters
from serving.config import ServerConfig
from serving.errors import Code, ServingError
from serving.repository import Repository

P = ParamSpec("P")
Result = TypeVar("Result")


# TensorFlow computes in its own threads and these mostly wait, so more than CPUs is right.
DEFAULT_THREADS = 4 * (os.cpu_count() or 1)
MAX_THREADS = 256  # unless somebody asks for more

# What a thread that hears of all callers reads and writes itself; more would hold the others up.
SMALL_REQUEST = 16 * 1024  # bytes
SMALL_OUTPUT = 4 * 1024  # numbers or texts


def num_threads(config: ServerConfig) -> int:
    """Requests that may run at once: what the settings say, else enough to fill two batches.

    A request waits for its batch in its thread, so fewer threads would cap the size of a batch.
    """
    threads = config.max_running_requests or config.rest_api_num_threads
    if threads:
        return threads
    parameters = configured_parameters(config)
    rows = 2 * parameters.max_batch_size if parameters else 0
    return max(DEFAULT_THREADS, min(rows, MAX_THREADS))


def needs_no_thread(config: ServerConfig, num_bytes: int) -> bool:
    """Whether a Predict of so many bytes would only wait in its thread, for its batch."""
    return (
        config.enable_batching
        and not config.enable_per_model_batching_parameters
        and config.engine != "remote"
        and num_bytes <= SMALL_REQUEST
    )


def is_small(outputs: Iterable[np.ndarray]) -> bool:
    """Whether they are written as fast as they would be handed to a thread."""
    return sum(output.size for output in outputs) <= SMALL_OUTPUT


class Service:
    """Runs work on models in threads, so that the event loop stays free for other requests."""

    def __init__(
        self,
        repository: Repository,
        num_threads: int = DEFAULT_THREADS,
        max_waiting: int = ServerConfig.max_waiting_requests,
        max_streams: int = ServerConfig.max_streams,
    ) -> None:
        self.repository = repository
        self.is_draining = False
        self._num_threads, self._max_waiting = num_threads, max_waiting
        self._max_streams = max_streams
        self._threads = concurrent.futures.ThreadPoolExecutor(
            num_threads, thread_name_prefix="request"
        )
        self._running: set[asyncio.Future[Any]] = set()
        self._streams: set[asyncio.Future[Any]] = set()  # tasks inside of `stream`
        self._left: set[concurrent.futures.Future[Any]] = set()  # nobody waits for them any more
        self._num_texts = 0  # inside of `text`
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_cut_off = False
        self._callers = 0  # inside of `caller`
        self._callers_changed = threading.Condition()
        metrics.watch("/stepwise/serving/waiting_requests", lambda: self.num_waiting)
        metrics.watch("/stepwise/serving/running_requests", lambda: self.num_running)
        metrics.watch("/stepwise/serving/streams", lambda: len(self._streams))

    @property
    def num_running(self) -> int:
        return min(self._num_taken, self._num_threads) + self._callers

    @property
    def num_waiting(self) -> int:
        """Requests that have no thread yet."""
        return max(self._num_taken - self._num_threads, 0)

    @property
    def _num_taken(self) -> int:
        return len(self._running) + len(self._left) + self._num_texts

    @property
    def is_full(self) -> bool:
        return self.num_waiting >= self._max_waiting

    async def run(
        self,
        work: Callable[Concatenate[Repository, P], Result],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """`work(repository, ...)` in a thread.

        Raises UNAVAILABLE while draining, RESOURCE_EXHAUSTED when too many requests wait.
        """
        self._refuse_what_is_too_much()
        in_thread = self._threads.submit(lambda: work(self.repository, *args, **kwargs))
        future = asyncio.wrap_future(in_thread)
        self._running.add(future)
        self._is_idle.clear()
        try:
            return await future
        except asyncio.CancelledError as error:
            if not in_thread.cancelled():  # its caller has gone, and it still holds its thread
                self._left.add(in_thread)
                in_thread.add_done_callback(self._left.discard)
            raise self._said_of(error) from None
        finally:
            self._ended(future)

    async def run_in_loop(
        self,
        work: Callable[Concatenate[Repository, P], Coroutine[Any, Any, Result]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """`await work(repository, ...)`, which holds no thread; it goes on when the caller leaves.

        Raises as `run` does.
        """
        self._refuse_what_is_too_much()
        task = asyncio.ensure_future(work(self.repository, *args, **kwargs))
        self._running.add(task)
        self._is_idle.clear()
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as error:
            raise self._said_of(error) from None

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Counts the task in its block as running, without a thread; for a task that waits much.

        Raises as `run` does, and UNAVAILABLE in the block when it is cut off.
        """
        self._refuse_while_draining()
        if len(self._streams) >= self._max_streams:
            metrics.count_shed("streams")
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                "The server is busy: too many answers are being written (--max-streams); try "
                "again later.",
            )
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("A stream is counted by its task, and this runs in none")
        self._streams.add(task)
        self._is_idle.clear()
        try:
            yield
        except asyncio.CancelledError as error:
            raise self._said_of(error) from None
        finally:
            self._streams.discard(task)
            self._set_idle()

    @contextlib.contextmanager
    def text(self) -> Iterator[None]:
        """Counts work inside of `stream` that is done by one call of `in_thread` after another: it
        takes a thread from other requests, or waits for one, as they do.

        Raises RESOURCE_EXHAUSTED when too many requests wait.
        """
        self._refuse_when_full()
        self._num_texts += 1
        try:
            yield
        finally:
            self._num_texts -= 1

    async def in_thread(
        self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """`work(...)` in a thread, for a task inside of `stream`.

        A task that is cancelled before its work has begun is so at once, else when the thread is
        through, which cannot be stopped: what the thread works on is held until then.
        """
        in_thread = self._threads.submit(work, *args, **kwargs)
        future = asyncio.wrap_future(in_thread)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not in_thread.cancel():
                await asyncio.gather(future, return_exceptions=True)
            raise

    def _said_of(self, error: asyncio.CancelledError) -> BaseException:
        if self._is_cut_off:
            return ServingError(
                Code.UNAVAILABLE, "The server stopped before this request was finished."
            )
        return error  # the caller has gone

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._running.discard(future)
        self._set_idle()

    def _set_idle(self) -> None:
        if not (self._running or self._streams):
            self._is_idle.set()

    @contextlib.contextmanager
    def caller(self) -> Iterator[Repository]:
        """Counts who works on models by itself, in a thread of its own or none; for any thread.

        Raises UNAVAILABLE while draining, RESOURCE_EXHAUSTED when too many are there.
        """
        with self._callers_changed:
            self._refuse_while_draining()
            if self._callers >= self._num_threads + self._max_waiting:
                raise self._busy()
            self._callers += 1
        try:
            yield self.repository
        finally:
            with self._callers_changed:
                self._callers -= 1
                self._callers_changed.notify_all()

    def _refuse_what_is_too_much(self) -> None:
        self._refuse_while_draining()
        self._refuse_when_full()

    def _refuse_when_full(self) -> None:
        if self.is_full:
            raise self._busy()

    def _busy(self) -> ServingError:
        metrics.count_shed("queue")
        return ServingError(
            Code.RESOURCE_EXHAUSTED,
            "The server is busy: too many requests wait (--max-waiting-requests); try again later.",
        )

    def _refuse_while_draining(self) -> None:
        if self.is_draining:
            raise ServingError(
                Code.UNAVAILABLE, "The server is shutting down; try again later or elsewhere."
            )

    async def drain(self, seconds: float) -> int:
        """Refuses new work and waits for what runs; returns how many requests had to be cut off."""
        with self._callers_changed:
            self.is_draining = True
        others = asyncio.to_thread(self._wait_for_callers, seconds)
        waiting = asyncio.ensure_future(others)
        try:
            await asyncio.wait_for(self._is_idle.wait(), seconds)
        except TimeoutError:
            self._is_cut_off = True
        unfinished = [*self._running, *self._streams]
        for future in unfinished:
            future.cancel()  # the thread cannot be stopped; its caller gets an answer
        return len(unfinished) + await waiting

    def _wait_for_callers(self, seconds: float) -> int:
        with self._callers_changed:
            self._callers_changed.wait_for(lambda: self._callers == 0, seconds)
            return self._callers

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
