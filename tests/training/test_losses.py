import numpy as np
import pytest

from training.losses import classification_loss, language_model_loss


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def numbers(sums):
    return {name: float(value) for name, value in sums.items()}


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, 6).astype(np.int32), rng.normal(size=(6, 4)).astype("float32")


@pytest.fixture
def windows():
    """Targets of rows with 5, 2, 0 and 3 tokens; the rest is padding."""
    rng = np.random.default_rng(1)
    targets = rng.integers(1, 7, (4, 5)).astype(np.int32)
    for row, length in enumerate([5, 2, 0, 3]):
        targets[row, length:] = 0
    return targets, rng.normal(size=(4, 5, 7)).astype("float32")


def test_classification_loss_is_the_summed_cross_entropy(texts):
    labels, logits = texts
    sums = numbers(classification_loss({"label": labels}, logits))
    expected = -sum(log_softmax(logits)[i, label] for i, label in enumerate(labels))
    assert sums["loss_sum"] == pytest.approx(expected, rel=1e-5)
    assert sums["num_targets"] == 6
    assert sums["num_correct"] == np.sum(logits.argmax(1) == labels)


def test_label_zero_is_a_label_and_no_padding():
    sums = numbers(classification_loss({"label": np.zeros(3, np.int32)}, np.zeros((3, 2))))
    assert sums == pytest.approx({"loss_sum": 3 * np.log(2), "num_targets": 3, "num_correct": 3})


def test_language_model_loss_counts_tokens_and_no_padding(windows):
    targets, logits = windows
    sums = numbers(language_model_loss({"targets": targets}, logits))
    at = [(b, t) for b in range(4) for t in range(5) if targets[b, t]]
    expected = -sum(log_softmax(logits)[b, t, targets[b, t]] for b, t in at)
    assert sums["loss_sum"] == pytest.approx(expected, rel=1e-5)
    assert sums["num_targets"] == len(at) == 10
    assert sums["num_correct"] == sum(logits[b, t].argmax() == targets[b, t] for b, t in at)


def test_logits_at_padding_change_nothing(windows):
    targets, logits = windows
    changed = logits.copy()
    changed[targets == 0] = 100.0
    changed[targets == 0, 0] = 200.0  # padding predicted right is no success either
    before, after = (
        numbers(language_model_loss({"targets": targets}, x)) for x in (logits, changed)
    )
    assert before == after


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_sums_over_parts_of_a_batch_are_those_of_the_whole(windows, texts, cut):
    for loss, name, (targets, logits) in (
        (language_model_loss, "targets", windows),
        (classification_loss, "label", texts),
    ):
        whole = numbers(loss({name: targets}, logits))
        parts = [
            numbers(loss({name: targets[part]}, logits[part]))
            for part in (slice(0, cut), slice(cut, None))
        ]
        for key, value in whole.items():
            assert parts[0][key] + parts[1][key] == pytest.approx(value, rel=1e-6)


def test_logits_far_apart_stay_finite():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    sums = numbers(classification_loss({"label": np.array([0, 1], np.int32)}, logits))
    assert sums["loss_sum"] == pytest.approx(2e4)
