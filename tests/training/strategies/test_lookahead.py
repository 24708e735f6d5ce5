import numpy as np
import pytest

from tests.training.strategies.toys import START, Quadratic


def test_the_distance_is_that_of_the_last_meeting():
    toy, alone = Quadratic("lookahead(sgd, 3)"), Quadratic("sgd")
    toy.run(2)
    assert toy.rule.diagnostics()["slow_fast_distance"] == 0.0
    toy.run(1)
    expected = np.linalg.norm(alone.run(3)[-1] - START)
    for _ in range(3):  # until the next one
        distance = float(toy.rule.diagnostics()["slow_fast_distance"])
        assert distance == pytest.approx(expected, rel=1e-6)
        if toy.index < 5:
            toy.run(1)


def test_weights_that_are_loaded_between_cycles_are_where_the_next_one_starts():
    toy, begun = Quadratic("lookahead(sgd, 3)"), Quadratic("lookahead(sgd, 3)")
    toy.run(3)
    for one in (toy, begun):
        one.weights[0].assign([3.0, 4.0])
        np.testing.assert_array_equal(one.evaluated(), [3.0, 4.0])
    np.testing.assert_array_equal(toy.run(3), begun.run(3))
    np.testing.assert_array_equal(toy.evaluated(), begun.evaluated())
