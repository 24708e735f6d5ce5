"""Batching across requests, as TensorFlow Serving does it. Plain Python and numpy.

`Queues` decides what runs when and needs no threads; `Pool` runs its batches in threads that all
models share; `Batcher` is one version's side: it turns a request into a task, and the tasks of a
batch into one run and back.
"""

import asyncio
import contextlib
import math
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving import metrics, text_config
from serving.config import ServerConfig
from serving.errors import Code, ServingError, as_serving_error, invalid_argument
from serving.timing import Timing

Key = tuple[tuple[str, ...], tuple[str, ...]]  # names of the tensors fed and fetched
# (key, arrays to feed, seconds or None) -> arrays fetched
Run = Callable[[Key, Sequence[np.ndarray], float | None], Sequence[np.ndarray]]

MAX_PADDED_RANK = 6
DEFAULT_POOL = "model_server_batch_threads"  # its name when no file gives one


@dataclass(frozen=True, kw_only=True)
class BatchingParameters:
    """tensorflow.serving.BatchingParameters. Sizes are rows."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None  # None: max_batch_size

    @property
    def batch_limit(self) -> int:
        """The largest batch that is run; without splitting also the largest task."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    def check(self) -> None:
        """Raises INVALID_ARGUMENT in TensorFlow Serving's words, which fails a load."""
        for name, value, least in (
            ("max_batch_size", self.max_batch_size, 1),
            ("max_execution_batch_size", self.batch_limit, 1),
            ("num_batch_threads", self.num_batch_threads, 1),
            ("batch_timeout_micros", self.batch_timeout_micros, 0),
            ("max_enqueued_batches", self.max_enqueued_batches, 0),
        ):
            if value < least:
                kind = "positive" if least else "non-negative"
                raise invalid_argument(f"{name} must be {kind}; was {value}")
        if self.batch_limit > self.max_batch_size:
            raise invalid_argument(
                f"max_batch_size must be at least max_execution_batch_size; was "
                f"{self.max_batch_size}, below {self.batch_limit}"
            )
        if not self.allowed_batch_sizes:
            return
        if self.enable_large_batch_splitting:
            pairs = zip(self.allowed_batch_sizes, self.allowed_batch_sizes[1:], strict=False)
            if any(first >= second for first, second in pairs):
                raise invalid_argument(
                    "allowed_batch_sizes entries must be monotonically increasing"
                )
        if self.allowed_batch_sizes[-1] != self.batch_limit:
            wanted = (
                "be equal to max_execution_batch_size"
                if self.enable_large_batch_splitting
                else "match max_batch_size"
            )
            raise invalid_argument(
                f"Last entry in allowed_batch_sizes must {wanted}; "
                f"last entry was {self.allowed_batch_sizes[-1]}; expected {self.batch_limit}"
            )

    def rounded(self, rows: int) -> int:
        """The smallest allowed batch size that holds `rows`."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read_parameters(flag: str, path: Path) -> BatchingParameters:
    """The parameters in a text-format file that `flag` names. Raises ConfigError."""
    message = text_config.read(flag, path, "BatchingParameters")
    given: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.name == "allowed_batch_sizes":
            given[descriptor.name] = tuple(value)
        else:
            given[descriptor.name] = value.value if descriptor.message_type else value
    return BatchingParameters(**given)


def configured_parameters(config: ServerConfig) -> BatchingParameters | None:
    """The server's parameters, or None when nothing is batched. Raises ConfigError."""
    if not config.enable_batching:
        return None
    if not config.batching_parameters_file:
        return BatchingParameters(thread_pool_name=DEFAULT_POOL)
    return read_parameters("--batching_parameters_file", config.batching_parameters_file)


@dataclass(eq=False)
class Task:
    """One request's part in a batch. The times are those of the pool's clock, in seconds."""

    inputs: tuple[np.ndarray, ...]
    rows: int
    enqueued: float
    deadline: float = math.inf
    # Filled in by whoever runs the batch, before `finish`.
    outputs: tuple[np.ndarray, ...] = ()
    error: Exception | None = None
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    batch_rows: int = 0
    _is_finished: bool = False
    _go_on: Callable[[], object] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self) -> None:
        with self._lock:
            self._is_finished = True
        if self._go_on:
            self._go_on()

    def then(self, go_on: Callable[[], object]) -> None:
        """Calls `go_on` when the batch is done: in its thread, or here and now if it is already."""
        with self._lock:
            if not self._is_finished:
                self._go_on = go_on
                return
        go_on()

    def wait(self) -> None:
        """Holds this thread until the batch is done."""
        running = threading.Lock()  # wakes its one waiter in half the time of an Event
        running.acquire()
        self.then(running.release)
        running.acquire()

    async def wait_in_loop(self) -> None:
        """As `wait`, for a coroutine of asyncio, which holds no thread."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self.then(lambda: loop.call_soon_threadsafe(_resolve, done))
        await done

    def split(self, sizes: Sequence[int]) -> "list[Task]":
        parts, start = [], 0
        for size in sizes:
            inputs = tuple(array[start : start + size] for array in self.inputs)
            parts.append(Task(inputs, size, self.enqueued, self.deadline))
            start += size
        return parts


Wait = Callable[[Task], Awaitable[None]]


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled, when the server stops
        future.set_result(None)


@dataclass
class _Batch:
    opened: float
    tasks: list[Task] = field(default_factory=list)
    rows: int = 0


class _Queue:
    """The batches of one kind of task: full ones in front, the last one open."""

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters
        self.batches: deque[_Batch] = deque()

    def add(self, task: Task, now: float) -> list[Task]:
        parameters = self.parameters
        limit = parameters.batch_limit
        if task.rows > parameters.max_batch_size:
            raise invalid_argument(
                f"Task size {task.rows} is larger than maximum input batch size "
                f"{parameters.max_batch_size}"
            )
        room = limit - self.batches[-1].rows if self.batches else limit
        free = max(parameters.max_enqueued_batches - max(len(self.batches), 1), 0)
        if parameters.enable_large_batch_splitting:
            is_full = task.rows > room + free * limit
        else:
            is_full = task.rows > room and not free
        if is_full:
            raise ServingError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full",
            )
        parts = [task]
        if task.rows > room and parameters.enable_large_batch_splitting:
            sizes = [room] if room else []
            while left := task.rows - sum(sizes):
                sizes.append(min(left, limit))
            parts = task.split(sizes)
        for part in parts:
            if not self.batches or self.batches[-1].rows + part.rows > limit:
                self.batches.append(_Batch(now))
            self.batches[-1].tasks.append(part)
            self.batches[-1].rows += part.rows
        return parts

    def due(self) -> float:
        """When the first batch may run: at once if it can grow no more."""
        first = self.batches[0]
        if len(self.batches) > 1 or first.rows >= self.parameters.batch_limit:
            return -math.inf
        return first.opened + self.parameters.batch_timeout_micros / 1e6


class Queues:
    """A queue per key, served in turn. Times are whatever clock the caller goes by."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Any, _Queue] = OrderedDict()  # only those that hold tasks

    def add(self, key: Any, parameters: BatchingParameters, task: Task, now: float) -> list[Task]:
        """The tasks to wait for: `task`, or its parts when it was split.

        Raises INVALID_ARGUMENT for a task too large, UNAVAILABLE when the queue is full.
        """
        queue = self._queues.get(key) or _Queue(parameters)
        parts = queue.add(task, now)
        self._queues.setdefault(key, queue)
        return parts

    def take(self, now: float) -> tuple[Any, list[Task]] | None:
        """The next batch that is due, with its key."""
        for key, queue in self._queues.items():
            if queue.due() <= now:
                batch = queue.batches.popleft()
                if queue.batches:
                    self._queues.move_to_end(key)  # the other queues are next
                else:
                    del self._queues[key]
                return key, batch.tasks
        return None

    def due(self) -> float:
        """When `take` will have something; infinity when nothing waits."""
        return min((queue.due() for queue in self._queues.values()), default=math.inf)


class Pool:
    """Threads that run the batches of all models."""

    def __init__(
        self, num_threads: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.clock = clock
        self._num_threads = num_threads
        self._queues = Queues()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, batcher: "Batcher", key: Key, task: Task) -> list[Task]:
        """Queues `task` for `batcher.process`; tasks of equal batcher and key are mixed.

        Returns the tasks to wait for. Raises as `Queues.add` does.
        """
        with self._changed:
            if not self._threads:
                self._start()
            before = self._queues.due()
            parts = self._queues.add((batcher, key), batcher.parameters, task, task.enqueued)
            # A task that only joins a batch wakes nobody: its thread knows when to come.
            if self._queues.due() < before:
                self._changed.notify()
            return parts

    def close(self) -> None:
        """Ends the threads once the queues are empty."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        for i in range(self._num_threads):
            thread = threading.Thread(target=self._work, name=f"{self.name}-{i}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (taken := self._queues.take(self.clock())) is None:
                    due = self._queues.due()
                    if self._is_closed and due == math.inf:
                        return
                    self._changed.wait(None if due == math.inf else max(due - self.clock(), 0))
                if self._queues.due() < math.inf:
                    self._changed.notify()  # somebody else should see to the rest
            (batcher, key), tasks = taken
            batcher.process(key, tasks)


class Batcher:
    """One version's runs, batched. Safe to call from many threads; each waits for its batch.

    Whoever waits in a coroutine holds no thread, and is not to be cancelled while it waits.
    """

    def __init__(self, parameters: BatchingParameters, pool: Pool, run: Run) -> None:
        self.parameters = parameters
        self._pool = pool
        self._run = run

    def run(
        self, key: Key, inputs: tuple[np.ndarray, ...], timeout: float | None, timing: Timing
    ) -> Sequence[np.ndarray]:
        """The arrays fetched, this request's rows alone. `timeout` in seconds.

        Raises INVALID_ARGUMENT for inputs without a common first dimension or of too many rows,
        UNAVAILABLE when too much is waiting, RESOURCE_EXHAUSTED when the wait took all the time,
        and whatever the batch's run raises.
        """
        parts = self._submit(key, inputs, timeout)
        for part in parts:
            part.wait()
        return self._together(parts, timing)

    async def run_without_thread(
        self,
        key: Key,
        inputs: tuple[np.ndarray, ...],
        timeout: float | None,
        timing: Timing,
        wait: Wait,
    ) -> Sequence[np.ndarray]:
        """As `run`, for a coroutine that waits for a task by `await wait(task)`."""
        parts = self._submit(key, inputs, timeout)
        for part in parts:
            await wait(part)
        return self._together(parts, timing)

    def _submit(
        self,
        key: Key,
        inputs: tuple[np.ndarray, ...],
        timeout: float | None,
    ) -> list[Task]:
        rows = _num_rows(inputs)
        for _ in inputs:
            metrics.observe_batch_input(rows)
        now = self._pool.clock()
        deadline = math.inf if timeout is None else now + timeout
        return self._pool.submit(self, key, Task(inputs, rows, now, deadline))

    def _together(self, parts: list[Task], timing: Timing) -> Sequence[np.ndarray]:
        timing.queue += max(part.queue_seconds for part in parts)
        timing.compute += sum(part.compute_seconds for part in parts)
        timing.batch_rows = max(part.batch_rows for part in parts)
        for part in parts:
            if part.error is not None:
                raise part.error
        if len(parts) == 1:
            return parts[0].outputs
        return [np.concatenate(arrays) for arrays in zip(*(p.outputs for p in parts), strict=True)]

    def process(self, key: Key, tasks: list[Task]) -> None:
        """Runs one batch and gives each task its rows, or all of them the error."""
        try:
            self._process(key, tasks)
        except Exception as error:
            known = as_serving_error(error)
            for task in tasks:
                # One each: raised in several threads, a shared one would mix their tracebacks.
                task.error = ServingError(known.code, known.message) if known else error
        finally:
            for task in tasks:
                with contextlib.suppress(RuntimeError):  # an event loop has ended, and who waited
                    task.finish()

    def _process(self, key: Key, tasks: list[Task]) -> None:
        start = self._pool.clock()
        for task in tasks:
            task.queue_seconds = start - task.enqueued
            metrics.observe_queuing(self._pool.name, task.queue_seconds)
        deadline = max(task.deadline for task in tasks)
        if deadline <= start:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
            )
        rows = sum(task.rows for task in tasks)
        padded_rows = self.parameters.rounded(rows) if rows else 0
        metrics.observe_batch(rows, padded_rows)
        names, _ = key
        merged = [self._merged(i, name, tasks, padded_rows - rows) for i, name in enumerate(names)]
        start = self._pool.clock()
        outputs = self._run(key, merged, None if deadline == math.inf else deadline - start)
        seconds = self._pool.clock() - start
        for output in outputs:
            if np.ndim(output) == 0:
                raise ServingError(
                    Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions"
                )
            if len(output) != padded_rows:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the "
                    "0th dimension sizes of the input tensors",
                )
        end = 0
        for task in tasks:
            begin, end = end, end + task.rows
            task.outputs = tuple(output[begin:end] for output in outputs)
            task.compute_seconds, task.batch_rows = seconds, rows

    def _merged(self, i: int, name: str, tasks: list[Task], num_more: int) -> np.ndarray:
        """The i-th input of all tasks as one array, with `num_more` rows after them."""
        arrays = [task.inputs[i] for task in tasks]
        if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            same_rank = all(array.ndim == arrays[0].ndim for array in arrays)
            if not (self.parameters.pad_variable_length_inputs and same_rank):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Tensors with name '{name}' from different tasks have different shapes and "
                    "padding is turned off. Set pad_variable_length_inputs to true, or ensure "
                    "that all tensors with the same name have equal dimensions starting with the "
                    "first dim.",
                )
            sizes = tuple(np.max([array.shape[1:] for array in arrays], axis=0))
            arrays = [_padded(array, sizes) for array in arrays]
        if num_more:
            # The last task's first row, since the graph takes that one anyway.
            last = next(array for array in reversed(arrays) if len(array))
            arrays.append(np.repeat(last[:1], num_more, axis=0))
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _num_rows(inputs: Sequence[np.ndarray]) -> int:
    if not inputs:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in inputs):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    if any(len(array) != len(inputs[0]) for array in inputs):
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return len(inputs[0])


def _padded(array: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Grown to `sizes` behind the first dimension, with its own first element, not with zero.

    TensorFlow Serving does so, which is why it is done only when asked for.
    """
    if array.shape[1:] == sizes:
        return array
    if array.ndim > MAX_PADDED_RANK:
        raise invalid_argument("Only tensors with rank from 1 to 6 can be padded.")
    if not array.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    padded = np.full((len(array), *sizes), array.flat[0], array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded
