"""Who reads and who writes in the next step of the engine. Plain Python, no TensorFlow, no threads.

A job waits for a slot, reads its prompt a chunk at a time, then writes until it is done. Slots are
room in the cache, rows are places in the batch: only who writes has one, and rows have no holes, so
that a batch is never larger than what writes. Times are seconds of the clock that is given.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from serving.errors import Code, ServingError

# A call into the network is as many steps as fit in this time: whoever comes, or leaves, waits no
# longer for its end, and a reader sees tokens come at least so often.
CALL_SECONDS = 0.02
# While somebody's first token is still to come, unless others wait for a slot even so: then short
# calls, each of which costs a millisecond besides its steps, would make everybody's wait longer.
JOINING_SECONDS = 0.01
PASSED_OVER_AT_MOST = 4  # times that shorter prompts are read before a longer one


class State(Enum):
    WAITING = "waiting"  # for a slot
    READING = "reading"  # its prompt
    WRITING = "writing"
    DONE = "done"  # or cancelled, or out of time


@dataclass(eq=False)
class Job:
    """One text to write. Tokens whose keys and values are there, `num_read`, are a beginning of the
    prompt; its last token is not read but given to the first step that writes."""

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
    admitted: float = 0.0  # when it last got a slot
    num_written_before: int = 0  # when it last got a slot
    num_passed_over: int = 0
    is_begun: bool = False  # there is room for what it reads
    is_put_off: bool = False  # it had a slot and lost it

    @property
    def num_unread(self) -> int:
        return len(self.prompt) - 1 - self.num_read

    @property
    def length(self) -> int:
        """Tokens in front of the one that is given to the next step."""
        return len(self.prompt) + self.num_written - 1


@dataclass(frozen=True)
class Read:
    job: Job
    start: int
    count: int  # tokens of the prompt from `start` on

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.job.prompt[self.start : self.start + self.count]


@dataclass(frozen=True)
class Plan:
    """What to do in one step, in this order."""

    expired: tuple[Job, ...] = ()  # whose time is up; they hold nothing any more
    put_off: tuple[tuple[Job, int], ...] = ()  # (job, row): keep what the row holds for later
    begun: tuple[Job, ...] = ()  # make room for what they read
    admitted: tuple[Job, ...] = ()  # that have a slot from now on
    moves: tuple[tuple[int, int], ...] = ()  # (from, to): copy a row
    joins: tuple[Job, ...] = ()  # put what they have read into their row
    reads: tuple[Read, ...] = ()  # while the others write
    writes: tuple[Job, ...] = ()  # by row: 0, 1, 2, ...
    num_steps: int = 0  # tokens that each of them writes, at most


class Scheduler:
    """Decides, and keeps count of rows and slots. Not safe to call from several threads.

    A free slot goes to the caller with the fewest slots, of those to the one that has waited
    longest for a turn; each caller's jobs go in their order. When all slots are taken and a job has
    waited `patience` seconds, a caller that holds at least two slots more than its own loses the
    slot it got last; that job goes on later where it was. It has written `quantum` tokens by then,
    so no two callers throw each other out at every step.

    In a step at most `chunk` tokens of prompts are read, the prompt with the fewest left first, so
    a long prompt holds up neither those who write nor short prompts that come after it. When all
    slots are taken, those who are next are read already, a quarter as many as there are slots, so
    that a slot is empty at no step.
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
        """`num_cached(job)`, asked before a job is read: tokens that need not be."""
        self.num_slots, self.chunk, self.max_steps = num_slots, chunk, max_steps
        self.max_waiting, self.patience, self.quantum = max_waiting, patience, quantum
        self.num_ahead = -(-num_slots // 4)  # read before they have a slot
        self._num_cached, self._clock = num_cached, clock
        self._waiting: dict[str, deque[Job]] = {}  # by caller, in the order of their next turns
        self._reading: list[Job] = []
        self._rows: list[Job | None] = []  # who writes; None where somebody has left
        self._ready: list[Job] = []  # have read all and get their row in the next step
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

    def schedule(self, *, may_read: bool = True) -> Plan:
        """`may_read` is False while what an earlier plan gives to read is not all read."""
        now = self._clock()
        expired = [job for job in self._jobs() if job.deadline <= now]
        for job in expired:
            self.leave(job)
        put_off = self._put_off(now)
        begun: list[Job] = []
        admitted = self._admit(now, begun)
        joins, self._ready = self._ready, []
        moves = self._seat(joins)
        for job in joins:
            job.state = State.WRITING
        writes = tuple(job for job in self._rows if job is not None)
        reads = self._reads(begun) if may_read else []
        return Plan(
            tuple(expired),
            tuple(put_off),
            tuple(begun),
            tuple(admitted),
            tuple(moves),
            tuple(joins),
            tuple(reads),
            writes,
            self._num_steps(writes) if writes else 0,
        )

    def _put_off(self, now: float) -> list[tuple[Job, int]]:
        if self.num_free or not self._waiting:
            return []
        held = self._held()
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

    def _admit(self, now: float, begun: list[Job]) -> list[Job]:
        admitted = []
        for job in itertools.islice(_turns(self._waiting, self._held()), self.num_free):
            job.admitted, job.num_written_before = now, job.num_written
            self._begin(job, begun)
            job.state = State.READING
            (self._reading if job.num_unread > 0 else self._ready).append(job)
            admitted.append(job)
        return admitted

    def _begin(self, job: Job, begun: list[Job]) -> None:
        if not job.is_begun:
            job.num_read = job.num_cached = self._num_cached(job)
            job.is_begun = True
            begun.append(job)

    def _seat(self, joins: list[Job]) -> list[tuple[int, int]]:
        """Gives those who join their rows; returns the rows that move so that no hole is left."""
        holes = deque(row for row, job in enumerate(self._rows) if job is None)
        for job in joins:
            job.row = holes.popleft() if holes else len(self._rows)
            self._rows[job.row : job.row + 1] = [job]
        moves = []
        while holes:
            last = self._rows.pop()
            if last is None:
                holes.pop()  # the last row itself
                continue
            source, hole = len(self._rows), holes.popleft()
            moves.append((source, hole))
            self._rows[hole], last.row = last, hole
        return moves

    def _reads(self, begun: list[Job]) -> list[Read]:
        """The prompt with the fewest tokens left first, but none is passed over too often."""
        left, reads = self.chunk, []
        in_order = sorted(
            self._reading,
            key=lambda job: (job.num_passed_over < PASSED_OVER_AT_MOST, job.num_unread),
        )
        for job in in_order:
            if left > 0:
                count = min(job.num_unread, left)
                reads.append(Read(job, job.num_read, count))
                left -= count
            else:
                job.num_passed_over += 1
        for job in self._next() if left > 0 else ():
            self._begin(job, begun)
            if left > 0 and job.num_unread > 0:
                count = min(job.num_unread, left)
                reads.append(Read(job, job.num_read, count))
                left -= count
        return reads

    def _next(self) -> list[Job]:
        """Who will get the next slots, as things are, but for those put off, who have been read.

        Where turns changed after some were read, others wait: what is held stays within bounds.
        """
        waiting = {caller: deque(jobs) for caller, jobs in self._waiting.items()}
        has_read = [
            job.is_begun and not job.is_put_off for jobs in waiting.values() for job in jobs
        ]
        room = self.num_ahead - sum(has_read)
        turns = _turns(waiting, self._held())
        following = []
        for job in itertools.islice(turns, self.num_ahead):
            if not job.is_begun:
                room -= 1
            if not job.is_put_off and (job.is_begun or room >= 0):
                following.append(job)
        return following

    def _num_steps(self, writes: tuple[Job, ...]) -> int:
        is_joining = bool(self._reading) or any(job.num_written == 0 for job in writes)
        is_short = is_joining and not self._waiting
        seconds = JOINING_SECONDS if is_short else CALL_SECONDS
        wanted = max(job.max_tokens - job.num_written for job in writes)
        if not self._seconds_per_step:
            return 1
        return max(1, min(self.max_steps, wanted, int(seconds / self._seconds_per_step)))

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

    def jobs(self) -> list[Job]:
        """All that are not done."""
        return list(self._jobs())

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
