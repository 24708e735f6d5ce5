import numpy as np
import pytest
import tensorflow as tf

from tests.training.strategies.toys import START, Quadratic, Words
from training.optimizers import OPTIMIZERS
from training.strategies.catalogue import SCHEDULE_FREE


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - set(SCHEDULE_FREE)))
def test_a_task_begins_with_the_optimizer_as_it_was_made(name):
    toy = Words(f"reptile({name}, 3)")
    rate = toy.rule.optimizer_rule.optimizer.rate
    variables = toy.rule.optimizer_rule.optimizer.variables
    made = [np.array(tf.convert_to_tensor(variable)) for variable in variables]
    toy.run(2)
    assert toy.rule.optimizer_rule.optimizer.iterations == 2
    toy.run(1)
    for variable, value in zip(variables, made, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(variable), value)
    assert int(rate.begun) == 3
    toy.run(4)
    assert (toy.rule.optimizer_rule.optimizer.iterations, int(rate.begun)) == (1, 6)


def test_a_lower_rate_outlives_the_task():
    toy = Quadratic("reptile(sgd, 2)")
    toy.rule.optimizer_rule.optimizer.rate.multiplier.assign(0.5)
    np.testing.assert_allclose(toy.run(6), Quadratic("reptile(sgd, 2)", rate=0.025).run(6))


def test_rate_and_decay_follow_the_run():
    settings = {"schedule": "linear", "weight_decay": "linear(0.5, 0)", "num_updates": 8}
    path = Quadratic("reptile(sgd, 2, 1)", **settings).run(8)
    np.testing.assert_allclose(path, Quadratic("sgd", **settings).run(8), rtol=1e-12)
    without = Quadratic("sgd", **settings | {"weight_decay": 0.0}).run(8)
    assert np.abs(path - without).max() > 1e-3


def test_the_distance_is_that_of_the_last_task():
    toy = Quadratic("reptile(sgd, 3)")
    toy.run(3)
    expected = np.linalg.norm(Quadratic("sgd").run(3)[-1] - START)
    diagnostics = toy.rule.diagnostics()
    assert diagnostics.keys() == {"task_distance"}
    assert float(diagnostics["task_distance"]) == pytest.approx(expected, rel=1e-6)
