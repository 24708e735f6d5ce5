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


def run(planner, *, finish=True):
    """One step as the engine makes it, each call a millisecond a step; gives its plan."""
    plan = planner.schedule()
    for read in plan.reads:
        planner.has_read(read.job, read.count)
    if plan.writes:
        planner.took(plan.num_steps, 0.001 * plan.num_steps)
    for one in plan.writes:
        count = min(plan.num_steps, one.max_tokens - one.num_written)
        planner.has_written(one, count)
        if finish and one.num_written == one.max_tokens:
            planner.leave(one)
    return plan


def check_rows(planner, plan):
    """Rows are 0, 1, 2, ... of those who write, and nobody holds more slots than there are."""
    assert [one.row for one in plan.writes] == list(range(len(plan.writes)))
    assert planner.num_reading + planner.num_writing <= planner.num_slots


def test_a_job_reads_all_but_its_last_token_then_writes():
    planner, _ = scheduler(chunk=3)
    one = job(8)
    planner.submit(one)
    plans = [run(planner) for _ in range(4)]
    assert [[read.tokens for read in plan.reads] for plan in plans] == [
        [(0, 1, 2)],
        [(3, 4, 5)],
        [(6,)],
        [],
    ]
    assert plans[3].joins == plans[3].writes == (one,)
    assert one.length == 8 - 1 + one.num_written


def test_a_prompt_of_one_token_writes_at_once():
    planner, _ = scheduler()
    one = job(1)
    planner.submit(one)
    plan = run(planner)
    assert plan.writes == (one,) and not plan.reads


def test_what_is_cached_is_not_read():
    planner, _ = scheduler(num_cached=lambda one: len(one.prompt) - 3)
    one = job(10)
    planner.submit(one)
    plan = run(planner)
    assert [read.tokens for read in plan.reads] == [(7, 8)]
    assert one.num_cached == 7


def test_a_long_prompt_holds_up_neither_writers_nor_short_prompts():
    planner, _ = scheduler(chunk=4)
    writer, long, short = job(1), job(200), job(4)
    planner.submit(writer)
    run(planner)
    planner.submit(long)
    run(planner)
    planner.submit(short)
    for step in range(3):
        plan = run(planner)
        assert writer in plan.writes, f"step {step} did not write"
        assert sum(read.count for read in plan.reads) <= 4
    assert short.state is State.WRITING and long.state is State.READING


def test_a_long_prompt_is_not_passed_over_for_ever():
    planner, _ = scheduler(num_slots=100, chunk=4)
    long = job(9)
    planner.submit(long)
    for _ in range(30):
        planner.submit(job(5, max_tokens=1))
        run(planner)
    assert long.state in (State.WRITING, State.DONE)


def test_nothing_is_given_to_read_while_what_was_given_is_read():
    planner, _ = scheduler(chunk=4)
    writer, one = job(1), job(9)
    planner.submit(writer)
    planner.submit(one)
    (read,) = planner.schedule().reads
    for _ in range(PASSED_OVER_AT_MOST + 1):
        plan = planner.schedule(may_read=False)
        assert plan.writes == (writer,) and not plan.reads
    assert one.num_passed_over == 0
    planner.has_read(one, read.count)
    assert [read.start for read in planner.schedule().reads] == [4]


def test_no_more_jobs_than_slots():
    planner, _ = scheduler(num_slots=2)
    jobs = [job(1, max_tokens=1000) for _ in range(5)]
    for one in jobs:
        planner.submit(one)
    plan = run(planner)
    assert plan.writes == tuple(jobs[:2]) and planner.num_waiting == 3


def test_a_slot_that_is_left_goes_to_the_next_at_once():
    planner, _ = scheduler(num_slots=1)
    first, second = job(1), job(1)
    planner.submit(first)
    planner.submit(second)
    run(planner)
    planner.leave(first)
    assert run(planner).writes == (second,)
    assert first.state is State.DONE and first.row is None


def test_who_is_next_is_read_before_a_slot_is_free():
    planner, _ = scheduler(num_slots=1, chunk=4)
    first, second, third = job(1), job(7), job(7)
    for one in (first, second, third):
        planner.submit(one)
    for start in (0, 4):
        plan = run(planner)
        assert [(read.job, read.start) for read in plan.reads] == [(second, start)]
    assert not run(planner).reads, "more was read ahead than a quarter of the slots"
    planner.leave(first)
    plan = run(planner)
    assert plan.joins == plan.writes == (second,)
    assert [read.job for read in plan.reads] == [third]


def test_no_more_are_read_ahead_when_turns_change():
    planner, _ = scheduler(num_slots=2, chunk=100)
    writers = [job(1, caller="a"), job(1, caller="b")]
    first, second = job(9, caller="a"), job(9, caller="c")
    for one in (*writers, first):
        planner.submit(one)
    assert [read.job for read in run(planner).reads] == [first]
    planner.submit(second)
    assert not run(planner).reads
    planner.leave(writers[1])
    plan = run(planner)  # `second`, whose caller has no slot, is before who was read
    assert plan.admitted == (second,) and [read.job for read in plan.reads] == [second]
    planner.leave(writers[0])
    assert run(planner).joins == (second, first)


def test_the_caller_with_fewest_slots_is_next():
    planner, _ = scheduler(num_slots=3)
    greedy = [job(1, caller="a", max_tokens=1000) for _ in range(6)]
    modest = [job(1, caller="b", max_tokens=1000) for _ in range(1)]
    for one in greedy + modest:
        planner.submit(one)
    writes = run(planner).writes
    assert [one.caller for one in writes] == ["a", "b", "a"]


def test_callers_with_equally_many_slots_take_turns():
    planner, _ = scheduler(num_slots=1)
    for caller in "aaabbb":
        planner.submit(job(1, caller=caller, max_tokens=1))
    order = []
    while planner.jobs():
        order += [one.caller for one in run(planner).writes]
    assert order == list("ababab")


def test_a_caller_who_holds_everything_loses_a_slot_and_gets_it_back():
    planner, clock = scheduler(num_slots=2, patience=1.0, quantum=4)
    hog = [job(3, caller="a", max_tokens=1000) for _ in range(2)]
    for one in hog:
        planner.submit(one)
    for _ in range(6):
        run(planner)
    late = job(1, caller="b", max_tokens=1)
    planner.submit(late)
    assert not run(planner).put_off, "thrown out before the patience was over"
    clock.now += 1.0
    before = hog[1].num_written
    plan = run(planner)
    assert plan.put_off == ((hog[1], 1),) and hog[1].state is State.WAITING
    assert late in plan.writes
    plan = run(planner)
    assert plan.joins == (hog[1],) and not plan.reads, "what was read is read again"
    assert hog[1].num_written > before and hog[1].length == 3 - 1 + hog[1].num_written


@pytest.mark.parametrize("caller", ["a", "b"])
def test_nobody_is_thrown_out_for_his_own_jobs_or_for_an_equal_share(caller):
    """With one slot each nobody holds two more than another."""
    planner, clock = scheduler(num_slots=2, patience=0.0, quantum=0)
    for one in (job(1, caller="a"), job(1, caller="b")):
        planner.submit(one)
    run(planner)
    planner.submit(job(1, caller=caller))
    clock.now += 100
    assert not planner.schedule().put_off


def test_a_job_writes_its_quantum_before_it_is_thrown_out():
    planner, clock = scheduler(num_slots=2, patience=0.0, quantum=50)
    hog = [job(1, caller="a", max_tokens=1000) for _ in range(2)]
    for one in hog:
        planner.submit(one)
    run(planner)
    planner.submit(job(1, caller="b"))
    while not (plan := run(planner)).put_off:
        assert hog[1].num_written < 100, "never thrown out"
    assert plan.put_off[0][0].num_written >= 50


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_who_is_cancelled_holds_nothing(steps):
    """Waiting, reading and writing alike."""
    planner, _ = scheduler(num_slots=1, chunk=2)
    first, one = job(1), job(4)
    if steps == 0:
        planner.submit(first)
    planner.submit(one)
    for _ in range(steps + 1):
        run(planner, finish=False)
    planner.leave(one)
    assert one not in planner.jobs()
    assert planner.num_free == (0 if steps == 0 else 1) and planner.num_waiting == 0
    assert one not in run(planner).writes


def test_a_deadline_ends_a_job_wherever_it_is():
    planner, clock = scheduler(num_slots=2, chunk=2)
    writing, reading, waiting = (job(n, deadline=105.0) for n in (1, 50, 1))
    for one in (writing, reading, waiting):
        planner.submit(one)
    run(planner)
    assert writing.state is State.WRITING and reading.state is State.READING
    clock.now = 104.9
    assert not run(planner).expired
    clock.now = 105.0
    plan = planner.schedule()
    assert set(plan.expired) == {writing, reading, waiting}
    assert planner.num_free == 2 and not plan.writes and not plan.reads


def test_too_many_that_wait_are_refused():
    planner, _ = scheduler(num_slots=1, max_waiting=2)
    for _ in range(2):
        planner.submit(job())
    with pytest.raises(ServingError) as refused:
        planner.submit(job())
    assert refused.value.code is Code.RESOURCE_EXHAUSTED


def test_steps_of_a_call_fit_into_the_time_and_fewer_while_somebody_joins():
    planner, _ = scheduler(num_slots=4, max_steps=8)
    planner.submit(job(1, max_tokens=1000))
    run(planner)  # nothing is known of the time
    for _ in range(40):
        planner.took(8, 8 * 0.004)
    assert planner.schedule().num_steps == 5  # of 4 ms in 20 ms
    planner.submit(job(50))
    assert run(planner).num_steps == 2  # 10 ms, while a prompt is read
    for _ in range(80):
        planner.took(1, 0.5)
    assert planner.schedule().num_steps == 1  # longer than the time there is
    for _ in range(80):
        planner.took(8, 8e-6)
    run(planner)
    assert planner.schedule().num_steps == 8


def test_a_call_is_not_cut_short_while_others_wait_for_a_slot():
    planner, _ = scheduler(num_slots=2, max_steps=8)
    for one in (job(1, max_tokens=1000), job(50)):
        planner.submit(one)
    planner.took(1, 0.004)
    assert planner.schedule().num_steps == 2
    planner.submit(job(1))
    assert planner.schedule().num_steps == 5


def test_no_call_is_longer_than_what_is_left_to_write():
    planner, _ = scheduler()
    one = job(1, max_tokens=3)
    planner.submit(one)
    planner.took(1, 1e-5)
    assert planner.schedule().num_steps == 3


def test_rows_have_no_holes_and_moves_bring_each_job_to_its_row():
    """Jobs come, leave and are cancelled at random; what a row holds is followed by the moves."""
    generator = random.Random(0)
    planner, clock = scheduler(num_slots=6, chunk=8, patience=0.01, quantum=2)
    holds = {}  # row -> job
    for _ in range(600):
        clock.now += 0.005
        if generator.random() < 0.4:
            one = job(
                generator.randint(1, 20),
                max_tokens=generator.randint(1, 30),
                caller=generator.choice("abc"),
                deadline=clock.now + generator.choice([0.05, 100]),
            )
            planner.submit(one)
        if planner.jobs() and generator.random() < 0.1:
            planner.leave(generator.choice(planner.jobs()))
        plan = planner.schedule()
        for one, row in plan.put_off:
            assert holds[row] is one
        for source, target in plan.moves:
            holds[target] = holds.pop(source)
        for one in plan.joins:
            assert one.num_unread == 0
            holds[one.row] = one
        check_rows(planner, plan)
        assert all(holds[one.row] is one for one in plan.writes)
        for read in plan.reads:
            assert read.start == read.job.num_read
            planner.has_read(read.job, read.count)
        for one in plan.writes:
            planner.has_written(one, min(plan.num_steps, one.max_tokens - one.num_written))
            if one.num_written == one.max_tokens:
                planner.leave(one)
    for _ in range(1000):
        clock.now += 0.005
        run(planner)
    assert not planner.jobs() and planner.num_free == 6
