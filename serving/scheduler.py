"""Who reads and who writes next in the engine. Plain Python, no TensorFlow, no threads.

A job waits for a slot, reads its prompt a chunk at a time, which gives its first token, then gets a
row and writes until it is done. Slots are room in the cache, rows are places in the batch: only who
writes has one, and rows have no holes, so that a batch is never larger than what writes. Reading
and writing go on side by side, each asking for what is next when it is done. Times are seconds of
the clock that is given.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from serving.errors import Code, ServingError

# A call that writes is as many steps as fit in this time: whoever has read its prompt waits no
# longer for a row, and a caller sees tokens come at least so often.
CALL_SECONDS = 0.01
PASSED_OVER_AT_MOST = 4  # times that shorter prompts are read before a longer one


class State(Enum):
    WAITING = "waiting"  # for a slot
    READING = "reading"  # its prompt
    WRITING = "writing"
    DONE = "done"  # or cancelled, or out of time


@dataclass(eq=False)
class Job:
    """One text to write. Tokens whose keys and values are there, `num_read`, are a beginning of the
    prompt; who has read its last token has written the first one behind it."""

    prompt: tuple[int, ...]  # BEGIN and what follows
    max_tokens: int  # for which the context has room
    caller: str = ""  # between callers turns are taken
    deadline: float = math.inf
    state: State = State.WAITING
    row: int | None = None
    num_read: int = 0
    num_cached: int = 0  # of num_read, those that were there already
    num_written: int = 0
    since: float = 0.0  # when it began to wait
    begun: float = math.inf  # when it began to be read
    admitted: float = 0.0  # when it last got a slot
    num_written_before: int = 0  # when it last got a slot
    num_passed_over: int = 0
    is_put_off: bool = False  # it had a slot and lost it

    @property
    def is_begun(self) -> bool:
        return self.begun < math.inf

    @property
    def num_unread(self) -> int:
        return len(self.prompt) - self.num_read


@dataclass(frozen=True)
class Read:
    """Of a prompt `count` tokens from `start` on."""

    job: Job
    start: int
    count: int


@dataclass(frozen=True)
class Plan:
    """What a call that writes does, in this order."""

    put_off: tuple[tuple[Job, int], ...]  # (job, row): keep what the row holds for later
    moves: tuple[tuple[int, int], ...]  # (from, to): copy a row
    joins: tuple[tuple[Job, int], ...]  # (job, row): put what it has read, or was kept, there
    writes: tuple[Job, ...]  # by row: 0, 1, 2, ...
    num_steps: int  # tokens that each of them writes, at most


class Scheduler:
    """Decides, and keeps count of rows and slots. One thread at a time.

    A free slot goes to the caller with the fewest slots, of those to the one that has waited
    longest for a turn; each caller's jobs go in their order. When all slots are taken and a job has
    waited `patience` seconds, a caller that holds at least two slots more than its own loses the
    slot it got last; that job goes on later where it was. It has written `quantum` tokens by then,
    so no two callers throw each other out at every step.

    At most `chunk` tokens are read at once, of the prompt with the fewest left, so a long prompt
    does not hold up short ones that come after it. When all slots are taken, those who are next are
    read already, a quarter as many as there are slots, so that a slot is empty at no step.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        chunk: int = 64,
        max_steps: int = 8,
        max_waiting: int = 256,
        patience: float = 1.0,
        quantum: int = 32,
        num_cached: Callable[[Job], int] = lambda job: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`num_cached(job)`, asked when a job begins to be read: tokens that need not be, but never
        all of them."""
        self.num_slots, self.chunk, self.max_steps = num_slots, chunk, max_steps
        self.max_waiting, self.patience, self.quantum = max_waiting, patience, quantum
        self.num_ahead = -(-num_slots // 4)  # read before they have a slot
        self._num_cached, self._clock = num_cached, clock
        self._waiting: dict[str, deque[Job]] = {}  # by caller, in the order of their next turns
        self._reading: list[Job] = []
        self._rows: list[Job | None] = []  # who writes; None where somebody has left
        self._ready: list[Job] = []  # have read all and get their row in the next call
        self._seconds_per_step = 0.0  # 0: not known yet

    # ------------------------------------------------------------ what the engine tells

    def submit(self, job: Job) -> None:
        """Raises RESOURCE_EXHAUSTED when too many wait already."""
        if self.num_waiting >= self.max_waiting:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"{self.num_waiting} texts already wait to be written; try again later.",
            )
        job.since = self._clock()
        self._waiting.setdefault(job.caller, deque()).append(job)

    def leave(self, job: Job) -> None:
        """It is finished or cancelled: its slot is free, whatever it was doing."""
        if job.state is State.WAITING:
            self._remove_waiting(job)
        elif job in self._reading:
            self._reading.remove(job)
        elif job in self._ready:
            self._ready.remove(job)
        elif job.row is not None:
            self._rows[job.row] = None
        job.state, job.row = State.DONE, None

    def has_read(self, job: Job, count: int) -> None:
        job.num_read += count
        job.num_passed_over = 0
        if job.state is State.READING and not job.num_unread:
            self._reading.remove(job)
            self._ready.append(job)

    def has_written(self, job: Job, count: int) -> None:
        job.num_written += count

    def took(self, num_steps: int, seconds: float) -> None:
        """How long a call of so many steps was; the next ones are sized by it."""
        found, known = seconds / num_steps, self._seconds_per_step
        self._seconds_per_step = known + 0.25 * (found - known) if known else found

    # ------------------------------------------------------------ what is decided

    def expired(self) -> list[Job]:
        """Those whose time is up; they have to leave."""
        now = self._clock()
        return [job for job in self._jobs() if job.deadline <= now]

    def next_read(self) -> Read | None:
        """What to read now, if anything; `has_read` is told before this is asked again."""
        self._admit()
        may_be_read = self._reading or [job for job in self._next() if job.num_unread][:1]
        if not may_be_read:
            return None
        job = min(
            may_be_read,
            key=lambda job: (job.num_passed_over < PASSED_OVER_AT_MOST, job.num_unread),
        )
        for other in self._reading:
            other.num_passed_over += other is not job
        if not job.is_begun:
            job.begun = self._clock()
            job.num_read = job.num_cached = self._num_cached(job)
        return Read(job, job.num_read, min(job.num_unread, self.chunk))

    def next_call(self) -> Plan | None:
        """What to write now, if there is anything."""
        put_off = self._put_off()
        self._admit()
        joins, moves = self._seat()
        writes = tuple(job for job in self._rows if job is not None)
        if not writes and not put_off:
            return None
        num_steps = self._num_steps(writes) if writes else 0
        return Plan(tuple(put_off), tuple(moves), tuple(joins), writes, num_steps)

    def _put_off(self) -> list[tuple[Job, int]]:
        if self.num_free or not self._waiting:
            return []
        now, held = self._clock(), self._held()
        caller = min(self._waiting, key=lambda caller: held.get(caller, 0))
        if now - self._waiting[caller][0].since < self.patience:
            return []
        may_lose = [
            (job, row)
            for row, job in enumerate(self._rows)
            if job is not None
            and held[job.caller] >= held.get(caller, 0) + 2
            and job.num_written - job.num_written_before >= self.quantum
        ]
        if not may_lose:
            return []
        job, row = max(may_lose, key=lambda one: (held[one[0].caller], one[0].admitted, one[1]))
        self._rows[row], job.row = None, None
        job.state, job.is_put_off, job.since = State.WAITING, True, now
        self._waiting.setdefault(job.caller, deque()).appendleft(job)
        return [(job, row)]

    def _admit(self) -> None:
        for job in itertools.islice(_turns(self._waiting, self._held()), self.num_free):
            job.admitted, job.num_written_before = self._clock(), job.num_written
            job.state = State.READING
            (self._reading if job.num_unread else self._ready).append(job)

    def _seat(self) -> tuple[list[tuple[Job, int]], list[tuple[int, int]]]:
        """Gives those who are ready their rows; returns these, and the rows that move so that no
        hole is left."""
        holes = deque(row for row, job in enumerate(self._rows) if job is None)
        joins, moves = [], []
        for job in self._ready:
            row = holes.popleft() if holes else len(self._rows)
            self._rows[row : row + 1] = [job]
            job.row, job.state = row, State.WRITING
            joins.append((job, row))
        self._ready = []
        while holes:
            last = self._rows.pop()
            if last is None:
                holes.pop()  # the last row itself
                continue
            source, hole = len(self._rows), holes.popleft()
            moves.append((source, hole))
            self._rows[hole], last.row = last, hole
        return joins, moves

    def _next(self) -> list[Job]:
        """Who will get the next slots, as things are, but for those put off, who have been read.

        Where turns changed after some were read, others wait: what is held stays within bounds.
        """
        waiting = {caller: deque(jobs) for caller, jobs in self._waiting.items()}
        is_ahead = [
            job.is_begun and not job.is_put_off for jobs in waiting.values() for job in jobs
        ]
        room = self.num_ahead - sum(is_ahead)
        turns = _turns(waiting, self._held())
        following = []
        for job in itertools.islice(turns, self.num_ahead):
            if not job.is_begun:
                room -= 1
            if not job.is_put_off and (job.is_begun or room >= 0):
                following.append(job)
        return following

    def _num_steps(self, writes: tuple[Job, ...]) -> int:
        if not self._seconds_per_step:
            return 1
        wanted = max(job.max_tokens - job.num_written for job in writes)
        return max(1, min(self.max_steps, wanted, int(CALL_SECONDS / self._seconds_per_step)))

    # ------------------------------------------------------------ counts

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def num_reading(self) -> int:
        return len(self._reading) + len(self._ready)

    @property
    def num_writing(self) -> int:
        return sum(job is not None for job in self._rows)

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return self.num_slots - self.num_reading - self.num_writing

    def _held(self) -> dict[str, int]:
        """Slots by caller."""
        held: dict[str, int] = {}
        for job in self._jobs():
            if job.state is not State.WAITING:
                held[job.caller] = held.get(job.caller, 0) + 1
        return held

    def _jobs(self) -> Iterator[Job]:
        waiting = itertools.chain.from_iterable(self._waiting.values())
        seated = (job for job in self._rows if job is not None)
        return iter([*waiting, *self._reading, *self._ready, *seated])

    def _remove_waiting(self, job: Job) -> None:
        jobs = self._waiting[job.caller]
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.caller]


def _turns(waiting: dict[str, deque[Job]], held: dict[str, int]) -> Iterator[Job]:
    """Takes jobs from `waiting` in the order in which they get slots; `held` are those of each
    caller, and changed."""
    while waiting:
        caller = min(waiting, key=lambda caller: held.get(caller, 0))
        jobs = waiting.pop(caller)
        job = jobs.popleft()
        if jobs:
            waiting[caller] = jobs  # at the end: its next turn is after the others'
        held[caller] = held.get(caller, 0) + 1
        yield job
