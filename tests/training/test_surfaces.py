"""Surfaces have the minima and gradients they claim, in numpy and in TensorFlow alike."""

import json
import math

import matplotlib.image
import numpy as np
import pytest

from training.strategies.catalogue import OPTIMIZERS
from training.surfaces import (
    GRADIENT_RULES,
    SURFACES,
    RuleWalker,
    Surface,
    line_data,
    path,
    surface,
    surface_figure,
    surface_table,
    write_surface_report,
)


class Descent:
    """Gradient descent in TensorFlow, with Polyak's momentum if asked for."""

    def __init__(self, on: Surface, momentum=0.0, rate=None):
        import tensorflow as tf

        self.tf, self.on, self.momentum = tf, on, momentum
        self.w = tf.Variable(on.start, dtype=tf.float64)
        self.velocity = tf.zeros(2, tf.float64)
        self.rate = rate or on.rate

    def update(self):
        with self.tf.GradientTape() as tape:
            loss = self.on.loss(self.w)
        self.velocity = self.momentum * self.velocity - self.rate * tape.gradient(loss, self.w)
        self.w.assign_add(self.velocity)

    def weights(self):
        return self.w.numpy()


def gradient(on, w, step=1e-6):
    """Central differences."""
    moves = np.eye(2) * step
    return np.array([(on.loss(w + move) - on.loss(w - move)) / (2 * step) for move in moves])


@pytest.mark.parametrize("on", SURFACES.values(), ids=SURFACES)
def test_the_minimum_is_one(on):
    minimum = np.array(on.minimum)
    assert np.abs(gradient(on, minimum)).max() < 1e-6
    nearby = minimum[:, None] + 0.1 * np.random.default_rng(0).normal(size=(2, 200))
    assert (on.loss(nearby) > on.loss(minimum)).all()
    for (low, high), start, end in zip(on.limits, on.start, on.minimum, strict=True):
        assert low < start < high
        assert low < end < high


@pytest.mark.parametrize("on", SURFACES.values(), ids=SURFACES)
def test_tensorflow_sees_the_same_surface(on):
    walker = Descent(on)
    start = np.array(on.start)
    walker.update()
    np.testing.assert_allclose(walker.weights(), start - on.rate * gradient(on, start), rtol=1e-6)


@pytest.mark.parametrize("on", SURFACES.values(), ids=SURFACES)
def test_gradient_descent_comes_closer_at_the_surface_rate(on):
    walked = path(Descent, on, 100)
    assert walked.shape == (101, 2)
    assert tuple(walked[0]) == pytest.approx(on.start)
    losses = on.loss(walked.T) - on.loss(np.array(on.minimum))
    assert losses[-1] < 0.5 * losses[0]


def test_descent_on_the_bowl_follows_its_closed_form():
    bowl = surface("bowl")
    walked = path(Descent, bowl, 20)
    expected = np.outer((1 - bowl.rate) ** np.arange(21), bowl.start)
    np.testing.assert_allclose(walked, expected, rtol=1e-12)


def test_linear_regression_is_the_mean_square_error_of_its_points():
    on = surface("linear_regression")
    x, y = line_data()
    for slope, intercept in [(0.0, 0.0), (2.0, 1.0), (-0.7, 3.0)]:
        expected = np.mean((slope * x + intercept - y) ** 2)
        assert on.loss(np.array([slope, intercept])) == pytest.approx(expected)
    np.testing.assert_allclose(on.minimum, np.polyfit(x, y, 1), rtol=1e-9)


def test_rosenbrock_has_its_known_value_at_the_start():
    assert surface("rosenbrock").loss(np.array([-1.2, 1.0])) == pytest.approx(24.2)


def test_rules_that_ignore_the_size_of_gradients_have_a_rate_of_their_own():
    on = surface("rosenbrock")
    assert on.rate_for("adamw") == on.adaptive_rate != on.rate == on.rate_for("momentum")
    assert set(GRADIENT_RULES) < set(OPTIMIZERS)


@pytest.mark.parametrize("name", ["bowl", "ravine"])
def test_the_rule_of_the_trainer_walks_as_the_formula_says(name):
    on = surface(name)
    for expression, momentum in (("sgd", 0.0), ("momentum", 0.9)):
        walked = path(lambda s, e=expression: RuleWalker(e, s, 30), on, 30)
        expected = path(lambda s, m=momentum: Descent(s, m), on, 30)
        # Keras keeps rates and momenta as float32 numbers.
        np.testing.assert_allclose(walked, expected, atol=1e-6)


def test_a_walker_shows_the_weights_that_would_be_exported():
    on = surface("bowl")
    fast = path(lambda s: RuleWalker("sgd", s, 10), on, 10)
    slow = path(lambda s: RuleWalker("lookahead(sgd, k=5, alpha=0.5)", s, 10), on, 10)
    np.testing.assert_allclose(slow[5], (fast[0] + fast[5]) / 2, rtol=1e-6)
    assert not np.allclose(slow, fast)


def test_wrappers_of_several_batches_walk_too():
    on = surface("bowl")
    plain = path(lambda s: RuleWalker("sgd", s, 5), on, 5)
    windows = path(lambda s: RuleWalker("accumulate(sgd, 4)", s, 5), on, 5)
    np.testing.assert_allclose(windows, plain, rtol=1e-6)


def test_an_unknown_surface_is_refused_with_the_known():
    with pytest.raises(ValueError, match="--surface must be one of bowl, ravine.*'hill'"):
        surface("hill")


def test_a_path_that_diverges_ends_before_it_is_far_away(tmp_path):
    on = surface("rosenbrock")
    walked = path(lambda s: Descent(s, rate=0.1), on, 100)
    assert 1 < len(walked) < 100
    assert np.abs(walked).max() < 1e6
    paths = {"sgd": path(Descent, on, 100), "sgd(0.1)": walked}
    rows = surface_table(on, paths, 100)
    assert rows[2][2] == "diverged"
    write_surface_report(on, paths, 100, tmp_path)
    assert matplotlib.image.imread(tmp_path / "surface.png").std() > 0.01


def test_the_table_says_where_each_got_to():
    on = surface("ravine")
    paths = {"sgd": path(Descent, on, 80), "momentum": path(lambda s: Descent(s, 0.8), on, 80)}
    header, sgd, momentum = surface_table(on, paths, 80)
    by_name = dict(zip(header, sgd, strict=True))
    end = paths["sgd"][-1]
    assert float(by_name["loss"]) == pytest.approx(on.loss(end), rel=1e-3)
    assert float(by_name["distance to the minimum"]) == pytest.approx(math.hypot(*end), rel=1e-3)
    first = int(by_name["updates to 1 %"])
    losses = on.loss(paths["sgd"].T)
    assert losses[first] <= 0.01 * losses[0] < losses[first - 1]


def test_all_paths_are_drawn_and_written(tmp_path):
    on = surface("bowl")
    paths = {"sgd": path(Descent, on, 10), "$x^$": path(lambda s: Descent(s, 0.5), on, 10)}
    figure = surface_figure(on, paths)
    lines = figure.axes[0].lines
    np.testing.assert_allclose(np.transpose(lines[0].get_data()), paths["sgd"])
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == list(paths)
    text = write_surface_report(on, paths, 10, tmp_path)
    assert text.splitlines()[2].startswith("sgd")
    kept = json.loads((tmp_path / "paths.json").read_text())["paths"]
    np.testing.assert_allclose(kept["sgd"], paths["sgd"])
    assert "<svg" in (tmp_path / "surface.svg").read_text()
    assert "surface.png" in (tmp_path / "report.md").read_text()
