"""Who reads and who writes: decided with a clock of the test's own and no model at all."""

import random

import pytest

from serving.errors import Code, ServingError
from serving.scheduler import PASSED_OVER_AT_MOST, Job, Scheduler, State


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def job(length=5, *, max_tokens=100, caller="", **settings):
    return Job(tuple(range(length)), max_tokens, caller, **settings)


def scheduler(num_slots=4, **settings):
    clock = Clock()
    return Scheduler(num_slots=num_slots, clock=clock, **settings), clock


def wrote(planner, one, count, finish=True):
    planner.has_written(one, count)
    if finish and one.num_written >= one.max_tokens:
        planner.leave(one)


def read(planner, *, finish=True):
    """A part of a prompt, and the first token with its end, as the engine reads it; or None."""
    part = planner.next_read()
    if part is not None:
        assert part.start == part.job.num_read and 0 < part.count <= planner.chunk
        planner.has_read(part.job, part.count)
        if not part.job.num_unread:
            wrote(planner, part.job, 1, finish)
    return part


def write(planner, *, finish=True):
    """A call as the engine makes it, a millisecond a step; its plan, or None."""
    plan = planner.next_call()
    if plan is not None and plan.writes:
        planner.took(plan.num_steps, 0.001 * plan.num_steps)
        for one in plan.writes:
            wrote(planner, one, min(plan.num_steps, one.max_tokens - one.num_written), finish)
    return plan


def writing(planner, *jobs):
    """Has these read and written, once at least."""
    for one in jobs:
        planner.submit(one)
    while any(one.state is not State.WRITING for one in jobs):
        read(planner)
        write(planner)


def check_rows(planner, plan):
    """Rows are 0, 1, 2, ... of those who write, and nobody holds more slots than there are."""
    assert [one.row for one in plan.writes] == list(range(len(plan.writes)))
    assert planner.num_reading + planner.num_writing <= planner.num_slots


def test_a_job_reads_its_prompt_to_the_first_token_then_writes():
    planner, _ = scheduler(chunk=3)
    one = job(8)
    planner.submit(one)
    parts = []
    while one.num_unread:
        assert write(planner) is None and one.num_written == 0
        part = read(planner)
        parts.append((part.start, part.count))
    assert parts == [(0, 3), (3, 3), (6, 2)]
    assert one.num_written == 1 and read(planner) is None
    plan = write(planner)
    assert (
        plan.joins == ((one, 0),)
        and plan.writes == (one,)
        and one.num_written == 1 + plan.num_steps
    )


def test_who_ends_with_the_first_token_takes_no_row():
    planner, _ = scheduler(num_slots=1)
    one = job(5, max_tokens=1)
    planner.submit(one)
    read(planner)
    assert one.state is State.DONE and planner.num_free == 1 and write(planner) is None


def test_what_is_cached_is_not_read():
    """Asked for when it is begun, not before: others may leave it there meanwhile."""
    asked = []
    planner, _ = scheduler(num_cached=lambda one: asked.append(one) or len(one.prompt) - 3)
    one = job(10)
    planner.submit(one)
    assert write(planner) is None and not asked
    part = read(planner)
    assert (part.start, part.count, one.num_cached, asked) == (7, 3, 7, [one])


def test_a_long_prompt_holds_up_no_short_ones():
    planner, _ = scheduler(chunk=4)
    long, short = job(200), job(4)
    planner.submit(long)
    assert read(planner).job is long
    planner.submit(short)
    assert [read(planner).job for _ in range(2)] == [short, long]


def test_a_long_prompt_is_not_passed_over_for_ever():
    planner, _ = scheduler(num_slots=100, chunk=4)
    long = job(13)
    planner.submit(long)
    order = []
    for _ in range(3 * (PASSED_OVER_AT_MOST + 1)):
        planner.submit(job(4, max_tokens=1))
        order.append(read(planner).job is long)
    assert order == ([False] * PASSED_OVER_AT_MOST + [True]) * 3
    assert long.num_unread == 1


def test_no_more_jobs_than_slots():
    planner, _ = scheduler(num_slots=2)
    jobs = [job(1, max_tokens=1000) for _ in range(5)]
    for one in jobs:
        planner.submit(one)
    while read(planner):
        pass
    assert write(planner).writes == tuple(jobs[:2]) and planner.num_waiting == 3


def test_a_slot_that_is_left_goes_to_the_next_at_once():
    planner, _ = scheduler(num_slots=1)
    first, second = job(1), job(1)
    writing(planner, first)
    planner.submit(second)
    planner.leave(first)
    read(planner)
    assert write(planner).writes == (second,)
    assert first.state is State.DONE and first.row is None


def test_who_leaves_during_a_call_frees_the_slot_but_not_the_row():
    """The row goes on to the end of the call: who comes gets it in the next one."""
    planner, _ = scheduler(num_slots=1)
    first, second = job(1), job(1)
    writing(planner, first)
    assert planner.next_call().writes == (first,)
    planner.leave(first)
    planner.submit(second)
    assert read(planner).job is second and second.row is None
    assert write(planner).joins == ((second, 0),)


def test_who_is_next_is_read_before_a_slot_is_free():
    planner, _ = scheduler(num_slots=1, chunk=4)
    first, second, third = job(1), job(7), job(7)
    writing(planner, first)
    planner.submit(second)
    planner.submit(third)
    for start in (0, 4):
        part = read(planner)
        assert (part.job, part.start) == (second, start)
    assert second.state is State.WAITING and second.num_written == 1
    assert read(planner) is None, "more was read ahead than a quarter of the slots"
    assert write(planner).writes == (first,)
    planner.leave(first)
    plan = write(planner)
    assert plan.joins == ((second, 0),) and plan.writes == (second,)
    assert read(planner).job is third


def test_who_ends_before_there_was_a_slot_makes_room_ahead():
    planner, _ = scheduler(num_slots=1)
    first, second, third = job(1), job(3, max_tokens=1), job(3)
    writing(planner, first)
    planner.submit(second)
    planner.submit(third)
    assert [read(planner).job for _ in range(2)] == [second, third]
    assert second.state is State.DONE and planner.num_waiting == 1


def test_no_more_are_read_ahead_when_turns_change():
    planner, _ = scheduler(num_slots=2, chunk=100)
    writers = [job(1, caller="a"), job(1, caller="b")]
    first, second = job(9, caller="a"), job(9, caller="c")
    writing(planner, *writers)
    planner.submit(first)
    assert read(planner).job is first
    planner.submit(second)
    assert read(planner) is None
    planner.leave(writers[1])
    assert read(planner).job is second  # its caller has no slot: it is before who was read
    assert second.state is State.READING and first.state is State.WAITING
    planner.leave(writers[0])
    assert write(planner).joins == ((second, 0), (first, 1))


def test_the_caller_with_fewest_slots_is_next():
    planner, _ = scheduler(num_slots=3)
    greedy = [job(1, caller="a", max_tokens=1000) for _ in range(6)]
    modest = [job(1, caller="b", max_tokens=1000) for _ in range(1)]
    for one in greedy + modest:
        planner.submit(one)
    assert [read(planner).job.caller for _ in range(3)] == ["a", "b", "a"]


def test_callers_with_equally_many_slots_take_turns():
    planner, _ = scheduler(num_slots=1)
    for caller in "aaabbb":
        planner.submit(job(1, caller=caller, max_tokens=2))
    order = []
    while planner.num_free < 1 or planner.num_waiting:
        read(planner)
        order += [one.caller for one in write(planner).writes]
    assert order == list("ababab")


def hog_and(planner):
    """A caller who writes in both slots, for long enough to lose one."""
    hog = [job(3, caller="a", max_tokens=1000) for _ in range(2)]
    writing(planner, *hog)
    while hog[1].num_written < 10:
        write(planner)
    return hog


def test_a_caller_who_holds_everything_loses_a_slot_and_gets_it_back():
    planner, clock = scheduler(num_slots=2, patience=1.0, quantum=4)
    hog = hog_and(planner)
    late = job(1, caller="b", max_tokens=2)
    planner.submit(late)
    read(planner)  # ahead
    assert not write(planner).put_off, "thrown out before the patience was over"
    clock.now += 1.0
    before = hog[1].num_written
    plan = write(planner)
    assert plan.put_off == ((hog[1], 1),) and plan.joins == ((late, 1),)
    assert plan.writes == (hog[0], late) and hog[1].state is State.WAITING
    assert hog[1].num_written == before
    assert read(planner) is None, "what was read is read again"
    plan = write(planner)
    assert plan.joins == ((hog[1], 1),) and hog[1].num_written > before


def test_who_was_put_off_is_kept_though_nobody_writes():
    """One slot of the hog is still read, the other one is lost to somebody who is not read yet."""
    planner, clock = scheduler(num_slots=2, patience=1.0, quantum=4, chunk=4)
    hog = hog_and(planner)
    planner.leave(hog[0])
    hog[0] = job(50, caller="a")
    planner.submit(hog[0])
    assert read(planner).job is hog[0]
    planner.submit(job(9, caller="b"))
    clock.now += 1.0
    plan = planner.next_call()
    assert plan.put_off == ((hog[1], 1),) and not plan.writes
    assert planner.next_call() is None


@pytest.mark.parametrize("caller", ["a", "b"])
def test_nobody_is_thrown_out_for_his_own_jobs_or_for_an_equal_share(caller):
    """With one slot each nobody holds two more than another."""
    planner, clock = scheduler(num_slots=2, patience=0.0, quantum=0)
    writing(planner, job(1, caller="a"), job(1, caller="b"))
    planner.submit(job(1, caller=caller))
    clock.now += 100
    assert not planner.next_call().put_off


def test_a_job_writes_its_quantum_before_it_is_thrown_out():
    planner, clock = scheduler(num_slots=2, patience=0.0, quantum=50)
    hog = [job(1, caller="a", max_tokens=1000) for _ in range(2)]
    writing(planner, *hog)
    planner.submit(job(1, caller="b"))
    while not (plan := write(planner)).put_off:
        assert hog[1].num_written < 100, "never thrown out"
    assert plan.put_off[0][0].num_written >= 50


def test_who_is_cancelled_holds_nothing():
    """Waiting, reading, read and writing alike."""
    for state in ("waiting", "ahead", "reading", "ready", "writing"):
        planner, _ = scheduler(num_slots=1, chunk=2)
        one = job(4)
        if state in ("waiting", "ahead"):
            writing(planner, job(1))
        planner.submit(one)
        if state != "waiting":
            read(planner)
        if state in ("ready", "writing"):
            read(planner)
        if state == "writing":
            write(planner)
        planner.leave(one)
        assert planner.num_free == (0 if state in ("waiting", "ahead") else 1), state
        assert planner.num_waiting == 0 and read(planner) is None
        plan = write(planner)
        assert plan is None or one not in plan.writes


def test_whose_time_is_up_is_told_wherever_he_is():
    planner, clock = scheduler(num_slots=2, chunk=2)
    first, reading, waiting = (job(n, deadline=105.0) for n in (1, 50, 1))
    writing(planner, first)
    planner.submit(reading)
    read(planner)
    planner.submit(waiting)
    states = [one.state for one in (first, reading, waiting)]
    assert states == [State.WRITING, State.READING, State.WAITING]
    clock.now = 104.9
    assert not planner.expired()
    clock.now = 105.0
    assert set(planner.expired()) == {first, reading, waiting}


def test_too_many_that_wait_are_refused():
    planner, _ = scheduler(num_slots=1, max_waiting=2)
    for _ in range(2):
        planner.submit(job())
    with pytest.raises(ServingError) as refused:
        planner.submit(job())
    assert refused.value.code is Code.RESOURCE_EXHAUSTED


def test_steps_of_a_call_fit_into_the_time_whoever_comes():
    planner, _ = scheduler(num_slots=4, max_steps=8)
    writing(planner, job(1, max_tokens=1000))  # nothing was known of the time
    for _ in range(40):
        planner.took(8, 8 * 0.002)
    assert planner.next_call().num_steps == 5  # of 2 ms in 10 ms
    planner.submit(job(500))
    assert read(planner) and planner.next_call().num_steps == 5
    for _ in range(80):
        planner.took(1, 0.5)
    assert planner.next_call().num_steps == 1  # longer than the time there is
    for _ in range(80):
        planner.took(8, 8e-6)
    assert planner.next_call().num_steps == 8


def test_no_call_is_longer_than_what_is_left_to_write():
    planner, _ = scheduler()
    planner.submit(job(1, max_tokens=4))
    planner.took(1, 1e-5)
    read(planner)
    assert planner.next_call().num_steps == 3


def test_rows_have_no_holes_and_moves_bring_each_job_to_its_row():
    """Jobs come, leave and are cancelled at random, reads end at any time of a call; what a row
    holds is followed by the moves."""
    generator = random.Random(0)
    planner, clock = scheduler(num_slots=6, chunk=8, patience=0.01, quantum=2)
    holds, kept = {}, set()  # row -> job; who was put off
    alive, unread = [], None

    def end(one):
        planner.leave(one)
        alive.remove(one)

    def count(one, num):
        planner.has_written(one, num)
        if one.num_written == one.max_tokens:
            end(one)

    def come_and_go():
        nonlocal unread
        if generator.random() < 0.4:
            one = job(
                generator.randint(1, 20),
                max_tokens=generator.randint(1, 30),
                caller=generator.choice("abc"),
                deadline=clock.now + generator.choice([0.05, 100]),
            )
            planner.submit(one)
            alive.append(one)
        for one in planner.expired():
            end(one)
        if alive and generator.random() < 0.1:
            end(generator.choice(alive))
        for _ in range(generator.randrange(3)):
            if unread is not None:
                planner.has_read(unread.job, unread.count)
                if unread.job in alive and not unread.job.num_unread:
                    count(unread.job, 1)
            unread = planner.next_read()
            assert unread is None or (unread.start, unread.job in alive) == (
                unread.job.num_read,
                True,
            )

    for _ in range(600):
        clock.now += 0.005
        come_and_go()
        plan = planner.next_call()
        if plan is None:
            continue
        for one, row in plan.put_off:
            assert holds[row] is one
            kept.add(one)
        for source, target in plan.moves:
            holds[target] = holds.pop(source)
        for one, row in plan.joins:
            assert one.num_unread == 0 and one.num_written > 0
            holds[row] = one
        check_rows(planner, plan)
        assert all(holds[one.row] is one for one in plan.writes)
        come_and_go()  # while it writes
        for one in plan.writes:
            if one in alive:
                count(one, min(plan.num_steps, one.max_tokens - one.num_written))
    assert kept, "nobody was put off"
    if unread is not None:
        planner.has_read(unread.job, unread.count)
        if unread.job in alive and not unread.job.num_unread:
            count(unread.job, 1)
    while planner.num_free < 6 or planner.num_waiting:
        clock.now += 0.005
        assert read(planner) or write(planner), "nobody goes on"
