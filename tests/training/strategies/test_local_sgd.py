from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.training.strategies.toys import Quadratic, Words
from training.strategies.local_sgd import LocalSGD

CENTRES = ((0.0, 0.0), (1.0, 1.0), (-1.0, 0.5))


def test_the_drift_is_the_mean_distance_of_the_workers_from_their_mean():
    toy = Quadratic("diloco(momentum, 3, 4)", centres=CENTRES)
    toy.run(3)
    assert toy.rule.diagnostics()["worker_drift"] == 0.0  # they have not met yet
    toy.run(1)
    ends = np.array([Quadratic("momentum", centres=[c]).run(4)[-1] for c in CENTRES])
    expected = np.linalg.norm(ends - ends.mean(0), axis=1).mean()
    drift = float(toy.rule.diagnostics()["worker_drift"])
    assert drift == pytest.approx(expected, rel=1e-6)
    toy.run(3)
    assert float(toy.rule.diagnostics()["worker_drift"]) == drift  # until they meet again
    toy.run(1)
    assert float(toy.rule.diagnostics()["worker_drift"]) != drift


def test_sums_are_added_up_over_the_workers_and_norms_averaged():
    toy = Quadratic("local_sgd(sam(sgd), 3, 4)", centres=CENTRES, examples=(2, 1, 5))
    alone = [
        Quadratic("sam(sgd)", centres=[centre], examples=(count,))
        for centre, count in zip(CENTRES, (2, 1, 5), strict=True)
    ]
    for one in (toy, *alone):
        one.run(2)
    for name in ("loss_sum", "num_targets", "sharpness_sum"):
        total = sum(one.said[1][name] for one in alone)
        assert toy.said[1][name] == pytest.approx(total, rel=1e-6)
    assert toy.said[1]["num_targets"] == 8
    norms = [one.said[1]["grad_norm"] for one in alone]
    assert toy.said[1]["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-6)


def test_weights_that_are_loaded_before_the_first_update_are_where_all_workers_start():
    start = np.array([3.0, 4.0])
    toy, alone = Quadratic("local_sgd(sgd, 2, 5)"), Quadratic("sgd")
    for one in (toy, alone):
        one.weights[0].assign(start)
    np.testing.assert_array_equal(toy.evaluated(), start)
    np.testing.assert_array_equal(toy.run(5)[-1], alone.run(5)[-1])


def test_a_lower_rate_holds_for_all_workers_at_once():
    lowered, half = Quadratic("local_sgd(sgd, 2, 3)"), Quadratic("local_sgd(sgd, 2, 3)", rate=0.025)
    lowered.rule.optimizer_rule.optimizer.rate.multiplier.assign(0.5)
    np.testing.assert_allclose(lowered.run(6), half.run(6), rtol=1e-12)


def test_every_worker_counts_the_updates_of_the_run():
    settings = {"schedule": "linear", "num_updates": 8}
    toy, alone = (Quadratic(e, **settings) for e in ("local_sgd(sgd, 3, 4)", "sgd"))
    np.testing.assert_allclose(toy.run(8)[3::4], alone.run(8)[3::4], rtol=1e-12)
    assert int(toy.rule.optimizer_rule.optimizer.iterations) == 8


def test_xla_takes_the_same_updates():
    expression = "diloco(adam, 2, 3)"
    plain, compiled = (
        Quadratic(expression, centres=CENTRES),
        Quadratic(expression, centres=CENTRES, xla=True),
    )
    np.testing.assert_allclose(compiled.run(7), plain.run(7), rtol=0, atol=1e-12)


def test_workers_learn():
    toy = Words("diloco(accumulate(adamw, 2), 2, 4)", sizes=(3, 2), data_seed=1)
    toy.batch = lambda i, batch=toy.batch: batch(i % 4)  # the same few texts again and again
    toy.run(60)
    first, last = toy.said[0]["loss_sum"], toy.said[-1]["loss_sum"]
    assert last < 0.5 * first
    assert toy.said[-1]["num_correct"] == toy.said[-1]["num_targets"]


def test_simulated_workers_run_on_one_device():
    inner = Quadratic("sgd").rule
    inner.replicas = SimpleNamespace(num=2)
    with pytest.raises(ValueError, match=r"one device.*TF_CONFIG.*Received: 2 replicas"):
        LocalSGD(inner, 2, 4)


def test_a_process_reads_the_part_of_one_worker():
    exchange = SimpleNamespace(num=2, index=1, mean=lambda tensors: tensors)
    toy = Quadratic("local_sgd(accumulate(sgd, 3), 2, 2)", exchange=exchange)
    assert (toy.rule.num_batches, toy.rule.num_evaluations) == (3, 6)  # of all workers
    assert Quadratic("local_sgd(accumulate(sgd, 3), 2, 2)").rule.num_batches == 6


def test_a_process_takes_what_the_others_sent():
    sent = tf.constant([5.0, 6.0], tf.float64)

    def mean(tensors):
        return [(t + sent) / 2 if t.shape == sent.shape else t for t in tensors]

    exchange = SimpleNamespace(num=2, index=0, mean=mean)
    toy, alone = Quadratic("local_sgd(sgd, 2, 3)", exchange=exchange), Quadratic("sgd")
    np.testing.assert_allclose(toy.run(3)[-1], (alone.run(3)[-1] + sent) / 2, rtol=1e-15)
