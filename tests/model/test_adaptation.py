import numpy as np
import pytest
import tensorflow as tf

from model import adaptation
from model.adaptation import (
    DynamicEvaluation,
    NearestTexts,
    NeighbourTraining,
    Tent,
    hidden_positions,
    padded,
    rows_of,
    sees_ahead,
)
from model.catalogue import build_model
from model.config import BagOfNgramsConfig, RecurrentConfig
from tests.model.adaptation_proofs import (
    LABELS,
    MUTANTS,
    PROOFS,
    TRAINING,
    NeighbouringWords,
    Table,
    TableClassifier,
    bag,
    distance,
    small_encoder,
    state,
)


@pytest.mark.parametrize("proof", PROOFS, ids=lambda p: f"{p.strategy}-{p.claim}")
def test_proofs_hold(proof):
    observed, holds = proof.check()
    assert holds, f"{proof.claim}: {observed} is not {proof.holds} {proof.tolerance}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.strategy}-{m.name}")
def test_every_fault_is_noticed(mutant):
    claim = mutant.strategy, mutant.claim_it_breaks
    (proof,) = [p for p in PROOFS if (p.strategy, p.claim) == claim]
    assert mutant.kills(proof)


def test_every_claim_has_a_fault_that_breaks_it():
    claims = {(proof.strategy, proof.claim) for proof in PROOFS}
    assert claims == {(mutant.strategy, mutant.claim_it_breaks) for mutant in MUTANTS}


def test_steps_in_episodes_leave_nothing_behind_when_interrupted(monkeypatch):
    model = small_encoder()
    before, tent = state(model), Tent(model, rate=0.1, episodic=True)

    def interrupted(tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(tent, "_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tent.predict(np.array([[3, 4]], np.int32))
    assert tent.num_gradients == 1
    assert distance(before, state(model)) == 0


def test_tent_moves_on_from_batch_to_batch_until_reset():
    model, tokens = small_encoder(), np.array([[3, 4]], np.int32)
    tent = Tent(model, rate=0.1)
    before, first, second = state(model), tent.predict(tokens), tent.predict(tokens)
    assert np.abs(first - second).max() > 1e-4
    tent.reset()
    assert distance(before, state(model)) == 0
    np.testing.assert_array_equal(tent.predict(tokens), first)


@pytest.mark.parametrize("config", [BagOfNgramsConfig(), RecurrentConfig(units=2)])
def test_tent_refuses_networks_without_normalisation(config):
    model = build_model(config, 9, 2, seed=0)
    with pytest.raises(ValueError, match=f"{type(model).__name__} has none. Use neighbours"):
        Tent(model, rate=0.1)


def test_test_time_training_refuses_networks_that_cannot_tell_tokens():
    with pytest.raises(ValueError, match="BagOfNgrams cannot.*Use neighbours"):
        adaptation.TestTimeTraining(bag(), rate=0.1)


def test_the_task_of_test_time_training_follows_from_what_the_network_sees():
    assert sees_ahead(NeighbouringWords()) and not sees_ahead(Table())


def test_test_time_training_leaves_the_head_alone():
    model = NeighbouringWords()
    table, head = model.table.numpy(), model.head.numpy()
    learner = adaptation.TestTimeTraining(model, rate=0.1, episodic=False)
    learner.predict(np.array([[2, 3, 4]], np.int32))
    assert np.abs(model.table.numpy() - table).max() > 1e-3
    np.testing.assert_array_equal(model.head, head)


@pytest.mark.parametrize("network", [NeighbouringWords, TableClassifier])
def test_texts_that_teach_nothing_are_predicted_as_they_are(network):
    model, tokens = network(), np.array([[0, 0], [1, 0]], np.int32)  # empty; one unknown token
    plain = np.concatenate([model(row[None]).numpy() for row in rows_of(tokens)])
    learner = adaptation.TestTimeTraining(model, rate=0.1, steps=2)
    np.testing.assert_allclose(learner.predict(tokens), plain, rtol=1e-6)
    far = NeighbourTraining(model, TRAINING, LABELS, rate=0.1).predict(tokens)
    np.testing.assert_allclose(far, plain, rtol=1e-6)  # no training text shares a token


def test_known_tokens_are_hidden_at_the_rate_asked_for():
    tokens = tf.constant([[1, 0] + [5] * 998, [7, 0] + [0] * 998, [1, 0] + [0] * 998])
    hidden = hidden_positions(tokens, 0.15, tf.constant([0, 0])).numpy()
    assert not hidden[:, 1].any() and not hidden[[0, 2], 0].any()  # padding, unknown
    assert abs(hidden[0].sum() - 150) < 50  # four and a half standard deviations
    assert hidden[1].tolist() == [True] + [False] * 999  # one at least
    assert not hidden[2].any()
    other = hidden_positions(tokens, 0.15, tf.constant([0, 1])).numpy()
    assert (other[0] != hidden[0]).any()


def test_the_nearest_text_is_the_same_text_and_strangers_are_left_out():
    index = NearestTexts(TRAINING)
    for i, row in enumerate(TRAINING):
        assert index.nearest(row, 1).tolist() == [i]
    assert index.nearest(np.array([4]), 5).tolist() == [1, 2]
    assert index.nearest(np.array([0, 99]), 5).tolist() == []


def test_rows_go_to_a_batch_and_back():
    rows = [np.array([2, 0, 3]), np.array([4])]
    assert padded(rows).tolist() == [[2, 0, 3], [4, 0, 0]]
    assert [row.tolist() for row in rows_of(padded(rows))] == [[2, 0, 3], [4]]
    assert padded([np.array([], np.int32)]).tolist() == [[0]]


def test_a_step_on_padding_alone_moves_nothing():
    model = Table()
    before, dynamic = state(model), DynamicEvaluation(model, rate=1.0)
    sums = dynamic.score(np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int32))
    assert float(sums["num_targets"]) == 0 and distance(before, state(model)) == 0


@pytest.mark.parametrize(
    "setting, numbers",
    [
        ("rate", {"rate": -0.1}),
        ("rate", {"rate": float("nan")}),
        ("decay", {"rate": 0.1, "decay": 1.5}),
        ("scaling", {"rate": 0.1, "scaling": "adam"}),
        ("epsilon", {"rate": 0.1, "epsilon": 0.0}),
    ],
)
def test_numbers_out_of_range_are_named(setting, numbers):
    with pytest.raises(ValueError, match=f"^{setting} must be"):
        DynamicEvaluation(Table(), **numbers)


@pytest.mark.parametrize(
    "setting, value",
    [("steps", -1), ("optimizer", "lion"), ("mask_rate", 0.0), ("num_copies", 0), ("seed", -1)],
)
def test_numbers_of_steps_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} must be"):
        adaptation.TestTimeTraining(NeighbouringWords(), rate=0.1, **{setting: value})
