"""The range test finds the edge of stability of problems whose edge is known."""

import math

import matplotlib.image
import numpy as np
import pytest

from training.rate_finder import advice, find_rate, rate_figure, write_rate_figure


class Quadratic:
    """f(w) = curvature / 2 * w^2, by gradient descent: stable below 2 / curvature."""

    def __init__(self, curvature, noise=0.0):
        self.curvature, self.w, self.rates = curvature, 1.0, []
        self.noise, self.random = noise, np.random.default_rng(0)

    def __call__(self, rate):
        self.rates.append(rate)
        loss = self.curvature / 2 * self.w**2 + 1.0
        self.w -= rate * self.curvature * self.w
        return loss + self.noise * self.random.normal()


@pytest.mark.parametrize("curvature", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_suggestion_scales_with_the_edge_of_stability(curvature, noise):
    step = Quadratic(curvature, noise * curvature)
    test = find_rate(step, low=1e-5 / curvature, high=1e2 / curvature)
    edge = 2 / curvature
    assert 0.01 * edge < test.steepest < 0.5 * edge
    assert 0.005 * edge < test.tenth_of_minimum < edge
    assert step.rates[-1] < 20 * edge  # it stopped soon after the edge
    assert test.ended.startswith("the loss rose above 4 times")
    # The suggestion does converge.
    fresh = Quadratic(curvature)
    for _ in range(2000):
        fresh(test.steepest)
    assert abs(fresh.w) < 1e-3


def test_rates_grow_in_equal_ratios():
    step = Quadratic(1.0)
    find_rate(step, low=1e-6, high=1e-3, num_updates=31)
    np.testing.assert_allclose(step.rates, np.geomspace(1e-6, 1e-3, 31))
    np.testing.assert_allclose(step.rates[10] / step.rates[0], 10)


def test_smoothing_is_an_exponential_mean_with_its_bias_corrected():
    losses = iter([1.0, 2.0, 3.0] + [3.0] * 27)
    test = find_rate(lambda rate: next(losses), num_updates=30)
    weights = np.array([0.81, 0.9, 1.0])
    assert test.smoothed[0] == pytest.approx(1.0)
    assert test.smoothed[2] == pytest.approx(weights @ [1, 2, 3] / weights.sum())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_test(broken):
    losses = iter([*np.linspace(2, 1, 40), broken])
    test = find_rate(lambda rate: next(losses), num_updates=100)
    assert len(test.rates) == len(test.losses) == len(test.smoothed) == 40
    assert test.ended.startswith(f"the loss was {broken} before")
    assert test.steepest is not None


@pytest.mark.parametrize("losses", [np.linspace(1, 2, 100), np.ones(100), [math.nan] * 100])
def test_without_a_fall_there_is_no_suggestion(losses):
    values = iter(losses)
    test = find_rate(lambda rate: next(values), num_updates=100)
    assert test.steepest is None
    assert "No rate lowered the loss" in advice(test)
    rate_figure(test)


def test_losses_below_zero_are_no_reason_to_stop():
    losses = iter(np.linspace(1, -1, 100))
    assert find_rate(lambda rate: next(losses), num_updates=100).ended == "all rates were tried"


@pytest.mark.parametrize(
    "wrong", [{"low": 0.0}, {"low": 1.0, "high": 0.1}, {"num_updates": 5}, {"stop_at": 1.0}]
)
def test_what_cannot_be_tested_is_refused(wrong):
    with pytest.raises(ValueError, match="Received"):
        find_rate(Quadratic(1.0), **wrong)


def test_the_picture_marks_the_suggestion(tmp_path):
    test = find_rate(Quadratic(10.0, 0.1))
    axes = rate_figure(test).axes[0]
    marked = [line.get_xdata()[0] for line in axes.lines[2:]]
    assert marked == [test.steepest, test.tenth_of_minimum]
    assert f"{test.steepest:.2g}" in axes.get_legend().get_texts()[2].get_text()
    assert f"optimizer.peak_learning_rate={test.steepest:.2g}" in advice(test)
    write_rate_figure(test, tmp_path)
    assert matplotlib.image.imread(tmp_path / "learning_rates.png").std() > 0.01
    assert "<svg" in (tmp_path / "learning_rates.svg").read_text()
