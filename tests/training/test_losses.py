import numpy as np
import pytest
import tensorflow as tf

from training.losses import classification_loss, distillation_loss, language_model_loss


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


# Distillation -------------------------------------------------------------------------------------


@pytest.fixture
def taught(texts):
    labels, logits = texts
    teacher = np.random.default_rng(2).normal(size=logits.shape).astype("float32")
    return {"label": labels, "teacher_logits": teacher}, logits


def test_distillation_is_hard_and_soft_loss_in_shares(taught):
    batch, logits = taught
    T = 3.0
    p, q = log_softmax(batch["teacher_logits"] / T), log_softmax(logits / T)
    soft = T**2 * np.sum(np.exp(p) * (p - q))
    hard = numbers(classification_loss(batch, logits, label_smoothing=0.1))
    for share in (0.0, 0.3, 1.0):
        sums = numbers(
            distillation_loss(batch, logits, temperature=T, share=share, label_smoothing=0.1)
        )
        expected = (1 - share) * hard["loss_sum"] + share * soft
        assert sums == pytest.approx(hard | {"loss_sum": expected}, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(taught, temperature):
    batch, _ = taught
    logits = tf.Variable(batch["teacher_logits"] + 2.0)  # as a constant changes no probability
    with tf.GradientTape() as tape:
        loss = distillation_loss(batch, logits, temperature=temperature, share=1.0)["loss_sum"]
    assert float(loss) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(tape.gradient(loss, logits), 0, atol=1e-5)


def test_the_gradient_of_the_teachers_term_keeps_its_size_at_any_temperature(taught):
    """To first order in 1/T it is (z - v) / K, of centred logits (Hinton et al., 2015, eq. 4)."""
    batch, logits = taught

    def gradient(temperature):
        variable = tf.Variable(logits)
        with tf.GradientTape() as tape:
            loss = distillation_loss(batch, variable, temperature=temperature, share=1.0)
        return tape.gradient(loss["loss_sum"], variable).numpy()

    z, v = (x - x.mean(-1, keepdims=True) for x in (logits, batch["teacher_logits"]))
    limit = (z - v) / logits.shape[1]
    errors = [np.abs(gradient(T) - limit).max() for T in (10.0, 20.0, 40.0)]
    assert errors[-1] < 0.05 * np.abs(limit).max()
    # First order: half the error at twice the temperature.
    for error, later in zip(errors, errors[1:], strict=False):
        assert later == pytest.approx(error / 2, rel=0.2)


def test_rows_that_do_not_count_teach_nothing(taught):
    batch, logits = taught
    weight = np.array([1, 0, 1, 1, 0, 2], np.float32)
    counted = np.repeat(np.arange(6), weight.astype(int))
    settings = {"temperature": 2.0, "share": 0.7}
    rows = {name: value[counted] for name, value in batch.items()}
    expected = numbers(distillation_loss(rows, logits[counted], **settings))
    sums = numbers(distillation_loss(batch | {"weight": weight}, logits, **settings))
    assert sums == pytest.approx(expected, rel=1e-5)
    # Padding may hold anything.
    logits, teacher = logits.copy(), batch["teacher_logits"].copy()
    logits[weight == 0], teacher[weight == 0] = 50.0, -50.0
    changed = batch | {"weight": weight, "teacher_logits": teacher}
    assert numbers(distillation_loss(changed, logits, **settings)) == sums
