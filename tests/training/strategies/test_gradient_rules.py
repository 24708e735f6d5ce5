"""What the parts inside one update refuse, and say; what they promise is in proofs_*.py."""

import numpy as np
import pytest
import tensorflow as tf

from tests.training.strategies.toys import Quadratic, Words
from training.losses import TaskLoss, classification_loss, language_model_loss, target_weights
from training.strategies.catalogue import resolve
from training.strategies.noise import GRADIENT_NOISE, PRIVACY, gaussian
from training.strategies.privacy import epsilon


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("truncate(sgd)", "model=recurrent_language_model"),
        ("dp_sgd(sgd)", "expected number of rows"),
    ],
)
def test_a_part_that_does_not_go_with_the_run_says_so(expression, sentence):
    with pytest.raises(ValueError, match=sentence):
        Words(expression)


def test_fgm_without_an_embedding_names_what_there_is():
    with pytest.raises(ValueError, match="'embedding' in its path.*Received: w"):
        Quadratic("fgm(sgd)")


@pytest.mark.parametrize(
    "expression",
    [
        "accumulate(loss_scale(sgd))",
        "extragradient(loss_scale(sgd))",
        "gradient_noise(loss_scale(sgd))",
        "loss_scale(loss_scale(sgd))",
        "truncate(sam(sgd))",
        "truncate(fgm(sgd))",
        "truncate(loss_scale(sgd))",
        "truncate(r_drop(sgd))",
        "accumulate(dp_sgd(sgd))",
        "dp_sgd(r_drop(sgd))",
        "local_sgd(dp_sgd(sgd))",
        "diloco(gradient_noise(sgd))",
    ],
)
def test_orders_that_make_no_sense_are_refused(expression):
    with pytest.raises(ValueError, match="cannot stand around"):
        resolve(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "sam(truncate(sgd))",
        "loss_scale(l2(gradient_noise(fgm(accumulate(sam(r_drop(adamw)))))))",
        "ema(lookahead(dp_sgd(adamw)))",
    ],
)
def test_orders_that_make_sense_are_not(expression):
    assert resolve(expression)


@pytest.mark.parametrize(
    ("expression", "evaluations"),
    [("r_drop(sgd)", 2), ("sam(sgd)", 2), ("fgm(accumulate(r_drop(sgd), 3))", 12)],
)
def test_what_an_update_costs_is_counted(expression, evaluations):
    assert Words(expression).rule.num_evaluations == evaluations


def test_each_rule_that_steps_away_reports_the_rise_under_its_own_name():
    sam, fgm, both = (Words(e, rate=0.01) for e in ("sam(sgd)", "fgm(sgd)", "sam(fgm(sgd))"))
    for toy in (sam, fgm, both):
        toy.run(1)
    (rise_of_sam,) = sam.said[0].keys() - {"loss_sum", "num_targets", "num_correct", "grad_norm"}
    assert rise_of_sam == "sharpness_sum" and sam.said[0][rise_of_sam] > 0
    assert "sharpness_sum" not in fgm.said[0] and fgm.said[0]["adversarial_rise_sum"] > 0
    # Of both, each measures from the weights as they are.
    assert both.said[0]["adversarial_rise_sum"] == fgm.said[0]["adversarial_rise_sum"]
    assert both.said[0]["sharpness_sum"] > 0


def test_the_look_ahead_step_of_extragradient_lowers_the_loss_and_is_no_sharpness():
    toy = Words("extragradient(sgd, 0.01)")
    toy.run(1)
    assert toy.said[0]["extrapolation_rise_sum"] < 0 and "sharpness_sum" not in toy.said[0]


def test_epsilon_without_noise_is_infinite_and_without_updates_nothing():
    assert epsilon(0, 0.1, 1, 1e-5) == np.inf
    assert epsilon(0, 0.1, 0, 1e-5) == 0
    assert epsilon(1.0, 0.1, 10, 1e-5) < epsilon(1.0, 0.1, 20, 1e-5) < epsilon(0.9, 0.1, 20, 1e-5)


@pytest.mark.parametrize(
    ("setting", "numbers"),
    [
        ("noise", (-1, 0.1, 1, 1e-5)),
        ("sampling_rate", (1, 0, 1, 1e-5)),
        ("num_updates", (1, 0.1, -1, 1e-5)),
        ("delta", (1, 0.1, 1, 1)),
    ],
)
def test_epsilon_names_the_number_that_is_out_of_bounds(setting, numbers):
    with pytest.raises(ValueError, match=setting):
        epsilon(*numbers)


def test_noise_is_normal_and_differs_by_weight_purpose_seed_and_step():
    like = [tf.zeros([200, 100]), tf.zeros([200, 100], tf.float64)]

    def draw(purpose=PRIVACY, seed=3, step=5):
        return gaussian(like, purpose=purpose, seed=seed, step=tf.constant(step, tf.int64))

    first, second = draw()
    assert first.dtype == tf.float32 and second.dtype == tf.float64
    np.testing.assert_array_equal(first, draw()[0])
    others = [second, draw(GRADIENT_NOISE)[0], draw(seed=4)[0], draw(step=6)[0]]
    for other in others:
        assert abs(np.corrcoef(np.ravel(first), np.ravel(other))[0, 1]) < 0.03
    # Moments and tails of 20 000 numbers, five standard errors wide.
    x = np.ravel(second)
    assert abs(x.mean()) < 0.036 and abs(x.std() - 1) < 0.025 and abs((x**4).mean() - 3) < 0.35
    assert abs(np.mean(np.abs(x) > 1.959964) - 0.05) < 0.008


def test_weights_of_targets_count_padding_and_missing_rows_nowhere():
    tokens = {"targets": np.array([[3, 0], [2, 1]], np.int32)}
    missing = tokens | {"weight": np.array([1, 0], np.float32)}
    np.testing.assert_array_equal(target_weights(tokens), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(target_weights(missing), [[1, 0], [0, 0]])
    labels = {"label": np.array([0, 1], np.int32)}
    np.testing.assert_array_equal(target_weights(labels), [1, 1])
    sums = language_model_loss(missing, tf.zeros([2, 2, 4]))
    assert float(sums["num_targets"]) == 1


def test_a_loss_without_a_state_says_so():
    loss = TaskLoss(lambda batch: tf.zeros([1, 2]), classification_loss)
    assert not loss.has_state
    with pytest.raises(ValueError, match="without a state"):
        loss.with_state({"label": np.zeros(1, np.int32)})
