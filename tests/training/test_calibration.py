"""Temperature and calibration error against cases worked out by hand and by another library."""

import numpy as np
import pytest

from training.calibration import (
    calibration_error,
    calibration_figures,
    certainty,
    draw_reliability,
    fit_temperature,
    nats,
)


def test_calibration_error_of_a_case_worked_out_by_hand():
    """Two bins: (0, 0.5] holds 0.3 right and 0.5 wrong, (0.5, 1] holds 0.6 wrong, 0.8 and 1 right.

    |1/2 - 0.4| * 2/5 + |2/3 - 0.8| * 3/5
    """
    score = np.array([0.8, 0.3, 0.5, 0.6, 1.0])
    is_right = np.array([True, True, False, False, True])
    found = calibration_error(score, is_right, num_bins=2)
    assert found == pytest.approx(0.1 * 2 / 5 + (0.8 - 2 / 3) * 3 / 5)
    # By rank: 0.3, 0.5, 0.6 (one right of three, mean 0.4667) and 0.8, 1.0 (both right, mean 0.9).
    found = calibration_error(score, is_right, num_bins=2, adaptive=True)
    assert found == pytest.approx((1.4 / 3 - 1 / 3) * 3 / 5 + 0.1 * 2 / 5)


def test_scores_that_are_what_they_say_have_no_error_and_sure_mistakes_all_of_it():
    score = np.full(10, 0.7)
    assert calibration_error(score, np.arange(10) < 7) == pytest.approx(0)
    for adaptive in (False, True):
        assert calibration_error(np.ones(6), np.zeros(6, bool), adaptive=adaptive) == 1
        assert calibration_error(np.zeros(0), np.zeros(0, bool), adaptive=adaptive) == 0


def drawn(temperature, count=20_000, num_labels=4):
    """Logits whose labels were drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(count, num_labels)) * 3
    gumbel = rng.gumbel(size=logits.shape)
    return logits.astype(np.float32), (logits / temperature + gumbel).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_the_one_the_labels_were_drawn_with(temperature):
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    best = nats(logits, labels, found)
    assert best < min(nats(logits, labels, found * f) for f in (0.99, 1.01))
    figures = calibration_figures(logits, labels, found)
    assert figures["after"]["ece"] < 0.015 and figures["after"]["loss"] == best
    if temperature != 1.0:
        assert figures["before"]["ece"] > 0.1


def test_no_temperature_changes_what_is_predicted():
    logits, labels = drawn(1.0, count=300)
    for temperature in (0.05, 20.0):
        score, is_right = certainty(logits, labels, temperature)
        np.testing.assert_array_equal(is_right, logits.argmax(axis=1) == labels)
        assert ((score > 0.25) & (score <= 1)).all()


def test_nats_are_the_cross_entropy():
    from sklearn.metrics import log_loss

    logits, labels = drawn(1.0, count=50)
    p = np.exp(logits / 1.7) / np.exp(logits / 1.7).sum(axis=1, keepdims=True)
    assert nats(logits, labels, 1.7) == pytest.approx(log_loss(labels, p), rel=1e-5)


def test_too_few_texts_say_nothing_of_a_temperature():
    logits, labels = drawn(3.0, count=99)
    assert fit_temperature(logits, labels) == 1.0
    assert fit_temperature(*drawn(3.0, count=100)) != 1.0


def test_a_temperature_stays_in_its_bounds_when_all_are_right():
    logits = np.tile(np.eye(2, dtype=np.float32), (60, 1))
    assert 0.05 <= fit_temperature(logits, np.tile([0, 1], 60)) < 0.06


def test_picture_has_a_panel_for_each_side(tmp_path):
    from matplotlib import image

    logits, labels = drawn(2.5, count=200)
    draw_reliability(logits, labels, 1.0, tmp_path / "one.png")
    draw_reliability(logits, labels, 2.5, tmp_path / "two.png")
    one, two = (image.imread(tmp_path / f"{name}.png").shape for name in ("one", "two"))
    assert two[1] == pytest.approx(2 * one[1], abs=2)
