import pytest

from training.config import OptimizerConfig
from training.schedules import SCHEDULES

PEAK = 0.4


def rate(name, step, *, steps=110, **settings):
    schedule = SCHEDULES[name](OptimizerConfig(peak_learning_rate=PEAK, **settings), steps)
    return float(schedule(step)) if callable(schedule) else schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_warm_up_is_a_line_from_nothing_to_the_peak(name):
    for step, expected in ((0, 0.0), (5, PEAK / 2), (9, 0.9 * PEAK), (10, PEAK)):
        assert rate(name, step, warmup_steps=10) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_warm_up_it_starts_at_the_peak(name):
    assert rate(name, 0) == pytest.approx(PEAK)
    assert rate(name, 0, steps=1, warmup_steps=10) == pytest.approx(PEAK)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_the_run_still_reaches_the_peak(name):
    assert rate(name, 5, steps=10, warmup_steps=1000) == pytest.approx(PEAK)
    assert rate(name, 2, steps=10, warmup_steps=1000) == pytest.approx(0.4 * PEAK)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_cosine_ends_at_its_fraction_of_the_peak_and_stays(warmup_steps):
    settings = {"warmup_steps": warmup_steps, "steps": warmup_steps + 100, "final_fraction": 0.1}
    at = {step: rate("cosine", warmup_steps + step, **settings) for step in (0, 25, 50, 100, 101)}
    assert at[0] == pytest.approx(PEAK)
    assert at[25] == pytest.approx(PEAK * (0.1 + 0.9 * (1 + 2**-0.5) / 2), rel=1e-5)
    assert at[50] == pytest.approx(PEAK * (0.1 + 0.9 / 2), rel=1e-5)
    assert at[100] == at[101] == pytest.approx(PEAK * 0.1, rel=1e-5)


def test_cosine_goes_down_to_nothing_by_default():
    assert rate("cosine", 109) < 1e-3 * PEAK
    assert rate("cosine", 110) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_constant_stays_at_the_peak(warmup_steps):
    for step in (10, 60, 109, 110, 1000):
        assert rate("constant", step, warmup_steps=warmup_steps) == pytest.approx(PEAK)
