import numpy as np
import pytest

from tests.training.strategies.toys import Quadratic


@pytest.mark.parametrize("expression", ["ema(sgd, 0.9)", "swa(sgd, 0)", "swa(sgd, 0.5)"])
def test_weights_that_are_loaded_before_the_first_update_are_evaluated(expression):
    toy = Quadratic(expression)
    toy.weights[0].assign([3.0, 4.0])
    np.testing.assert_array_equal(toy.evaluated(), [3.0, 4.0])
    path = toy.run(1)
    np.testing.assert_array_equal(toy.evaluated(), path[-1])  # and have no share in the average


def test_the_distance_is_that_of_the_average_from_the_weights():
    toy = Quadratic("swa(sgd, 0)")
    path = toy.run(6)
    expected = np.linalg.norm(path[-1] - path.mean(0))
    assert float(toy.rule.diagnostics()["average_distance"]) == pytest.approx(expected, rel=1e-6)


def test_weights_at_rest_stay_their_own_average():
    toy = Quadratic("ema(sgd, 0.99999)", rate=1e-30)
    toy.run(50, per_call=50)
    np.testing.assert_array_equal(toy.evaluated(), toy.flat())


def test_a_beta_near_one_is_not_rounded():
    """(1-b) and 1-b^t are small differences: in float32 they are off by a percent."""
    toy = Quadratic("ema(sgd, 0.99999)")
    path = toy.run(4)
    weight = 0.99999 ** np.arange(3, -1, -1.0)
    np.testing.assert_allclose(toy.evaluated(), weight @ path / weight.sum(), rtol=1e-10)


def test_swa_of_the_last_update_alone():
    toy = Quadratic("swa(sgd, 1)", num_updates=6)
    path = toy.run(6)
    np.testing.assert_array_equal(toy.evaluated(), path[-1])
