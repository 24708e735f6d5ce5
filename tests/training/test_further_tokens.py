"""Several tokens predicted at each step: the loss, and what of a run depends on it."""

import numpy as np
import pytest
import tensorflow as tf

from model.config import SentencePieceTokenizerConfig, TransformerDecoderConfig
from training.config import RunConfig
from training.datasets.config import DatasetConfig
from training.datasets.examples import TextData
from training.language_model import LanguageModel
from training.losses import TaskLoss, further_tokens_loss, language_model_loss
from training.objectives import build_objective
from training.strategies.r_drop import RDrop

# A row that ends early, and one where the second token ends a document and another begins.
TARGETS = np.array([[4, 2, 7, 3, 1], [5, 1, 6, 0, 0], [4, 3, 0, 6, 2]], np.int32)


def logits_of(seed, further):
    return (
        np.random.default_rng(seed).normal(size=(*TARGETS.shape, 1 + further, 8)).astype("float32")
    )


@pytest.mark.parametrize("further", [0, 1, 3])
def test_the_loss_sums_over_the_next_token_and_those_behind_it(further):
    logits, weight, nats = logits_of(0, further), [1.0, 2.0, 0.5], 0.0
    for row in range(3):
        for step in range(5):
            for k in range(1 + further):
                if step + k < 5 and TARGETS[row, step : step + k + 1].all():
                    scores = logits[row, step, k].astype(np.float64)
                    log_total = np.log(np.exp(scores).sum())
                    nats += weight[row] * (log_total - scores[TARGETS[row, step + k]])
    batch = {"targets": TARGETS, "weight": tf.constant(weight)}
    sums = further_tokens_loss(batch, tf.constant(logits))
    assert float(sums["loss_sum"]) == pytest.approx(nats, rel=1e-5)
    next_alone = language_model_loss(batch, tf.constant(logits[:, :, 0]))
    for name in ("num_targets", "num_correct"):
        assert float(sums[name]) == float(next_alone[name])


def test_r_drop_makes_every_prediction_of_a_step_agree():
    draws = [tf.constant(logits_of(seed, 1)) for seed in (0, 1)]
    batch, given = {"targets": TARGETS}, iter(draws)
    found = RDrop(TaskLoss(lambda _: next(given), further_tokens_loss), 2.0)(batch)["loss_sum"]
    p, q = (tf.nn.log_softmax(x).numpy() for x in draws)
    divergence = ((np.exp(p) - np.exp(q)) * (p - q)).sum(-1) / 2  # (B, T, 2)
    expected = divergence[TARGETS != 0].sum()  # alpha / 2 is 1
    expected += sum(float(further_tokens_loss(batch, x)["loss_sum"]) for x in draws) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_run_trains_the_blocks_beside_the_last_and_is_judged_by_the_next_token_alone():
    config = RunConfig(
        name="letters",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=TransformerDecoderConfig(
            num_layers=1,
            width=8,
            num_heads=2,
            inner_width=8,
            dropout=0.0,
            context_length=8,
            further_tokens=2,
        ),
        batch_size=2,
    )
    data = TextData(train=["the cat sat", "a dog ran"] * 4, validation=["a cat ran"], test=["x"])
    learner = LanguageModel.create(config, data)
    objective, model = build_objective(config, learner, data, seed=0), learner.model
    batch = {"tokens": np.array([[2, 5, 6, 7, 4]], np.int32), "targets": TARGETS[:1]}
    further = [v for v in model.trainable_variables if "further_" in v.path]
    assert len(further) == 2 * 10  # tensors of a block
    values = [v.value for v in further]
    with tf.GradientTape() as tape:
        total = objective.loss(batch)["loss_sum"]
    gradients = tape.gradient(total, values)
    assert all(np.any(tf.convert_to_tensor(g)) for g in gradients)
    before = objective.validate()
    for variable in further:
        variable.assign(variable.numpy() + 1.0)
    assert objective.validate() == before
    assert float(objective.loss(batch)["loss_sum"]) != pytest.approx(float(total), rel=1e-4)
