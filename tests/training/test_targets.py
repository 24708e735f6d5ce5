"""Losses, weights and figures of every target against NumPy, scikit-learn and SciPy."""

import numpy as np
import pytest
import tensorflow as tf

from training.config import OptimizerConfig, RunConfig, StageConfig, override
from training.datasets.config import DatasetError
from training.losses import TaskLoss, classification_loss, multi_label_loss, squared_error
from training.pipeline import ClassificationBatches
from training.recipes import recipe
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates
from training.targets import (
    GradeTarget,
    LabelsTarget,
    NumberTarget,
    build_target,
    class_weights,
    quadratic_kappa,
    scale_of,
    score_name,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 3)).astype(np.float32)
IS_LABEL = RNG.random((40, 3)) < (0.2, 0.5, 0.8)


def numbers(sums):
    return {name: float(value) for name, value in sums.items()}


# Losses -------------------------------------------------------------------------------------------


def test_multi_label_loss_is_the_sum_of_binary_cross_entropies():
    weight = RNG.random(40).astype(np.float32)
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    nats = -np.log(np.where(IS_LABEL, p, 1 - p)).sum(axis=1)
    is_right = ((p >= 0.5) == IS_LABEL).all(axis=1)
    found = numbers(multi_label_loss({"label": IS_LABEL, "weight": weight}, LOGITS))
    assert found["loss_sum"] == pytest.approx((nats * weight).sum(), rel=1e-5)
    assert found["num_targets"] == pytest.approx(weight.sum(), rel=1e-5)
    assert found["num_correct"] == pytest.approx((is_right * weight).sum(), rel=1e-5)
    assert 0 < is_right.sum() < 40
    assert numbers(multi_label_loss({"label": IS_LABEL}, LOGITS))["num_targets"] == 40


def test_squared_error_is_on_the_standard_scale():
    values = RNG.normal(size=40).astype(np.float32) * 7 + 50
    found = numbers(squared_error({"label": values}, LOGITS[:, :1], mean=50.0, deviation=7.0))
    expected = np.square(LOGITS[:, 0] - (values - 50) / 7).sum()
    assert found == pytest.approx({"loss_sum": expected, "num_targets": 40, "num_correct": 0})


# Weights of classes -------------------------------------------------------------------------------

LABELS = np.array([0] * 2 + [1] * 6 + [2] * 32, np.int32)
NAMES = ("bad", "so-so", "good")


def stage(**settings):
    return StageConfig(name="stage", **settings)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    found = class_weights(stage(class_weights="balanced"), LABELS, NAMES)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(found, expected)
    # A label without a text takes no part.
    found = class_weights(stage(class_weights="balanced"), LABELS[2:], NAMES)
    np.testing.assert_allclose(found, [0, 38 / 12, 38 / 64])


def test_given_weights_keep_their_ratios_and_weigh_one_on_average():
    found = class_weights(stage(class_weights="bad=4, so-so = 0.5"), LABELS, NAMES)
    np.testing.assert_allclose(np.array(found) / found[2], [4, 0.5, 1])
    assert np.array(found)[LABELS].mean() == pytest.approx(1)
    assert class_weights(stage(), LABELS, NAMES) is None


def test_weights_multiply_the_nats_and_leave_counts_alone():
    weights = [2.0, 0.5, 1.0]
    plain = numbers(classification_loss({"label": LABELS}, LOGITS))
    found = numbers(classification_loss({"label": LABELS}, LOGITS, class_weights=weights))
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, LOGITS).numpy()
    assert found["loss_sum"] == pytest.approx((nats * np.array(weights)[LABELS]).sum(), rel=1e-5)
    assert {**found, "loss_sum": 0} == {**plain, "loss_sum": 0}


def test_macro_f1_is_of_the_labels_that_occur(tmp_path):
    """As scikit-learn has it where it is not told which labels there are."""
    from sklearn.metrics import f1_score

    labels, target = np.array([0, 0, 1, 1], np.int32), build_target("class", NAMES)
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    wanted = f1_score(labels, logits.argmax(axis=1), average="macro")
    assert target.report(logits, labels, tmp_path)["macro_f1"] == pytest.approx(wanted)
    several, target = np.array([[True, False, False]] * 2), build_target("labels", NAMES)
    assert target.figures(np.array([[9.0, -9, -9], [-9, -9, -9]]), several)[
        "macro_f1"
    ] == pytest.approx(2 / 3)


@pytest.mark.parametrize("strategy", ["accumulate(sgd, 4)", "accumulate(sgd, 40)"])
def test_weights_are_exact_under_accumulation(strategy):
    """Pieces of one row each too: a mean over weights would forget the weight of such a piece."""
    loss_of_logits = build_target("class", NAMES).loss(stage(class_weights="balanced"), LABELS)

    def update(strategy):
        kernel = tf.keras.Variable(np.zeros((3, 3), np.float32), name="kernel")
        loss = TaskLoss(lambda batch: batch["x"] @ tf.convert_to_tensor(kernel), loss_of_logits)
        config = OptimizerConfig(peak_learning_rate=1.0, schedule="constant", clip_norm=None)
        rule = build_rule(strategy, loss, [kernel], config, num_updates=1)
        batch, size = {"x": LOGITS, "label": LABELS}, 40 // rule.num_batches
        parts = [
            {name: value[i : i + size] for name, value in batch.items()} for i in range(0, 40, size)
        ]
        compile_updates(rule)(stack(parts))
        return kernel.numpy()

    whole = update("sgd")
    np.testing.assert_allclose(update(strategy), whole, atol=1e-6)
    p, weights = np.full((40, 3), 1 / 3), np.array([40 / 6, 40 / 18, 40 / 96])[LABELS]
    gradient = LOGITS.T @ ((p - np.eye(3)[LABELS]) * weights[:, None]) / 40
    np.testing.assert_allclose(whole, -gradient, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("fine=2", "must name labels of the data: bad, so-so, good. Received: fine"),
        ("bad=0, so-so=0, good=0", "a weight above 0"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        class_weights(stage(class_weights=weights), LABELS, NAMES)


@pytest.mark.parametrize("weights", ["heavy", "good=-1", "good=x", "=2", "good=inf"])
def test_weights_that_cannot_be_read_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights must be none, balanced, or pairs"):
        stage(class_weights=weights)


# Figures ------------------------------------------------------------------------------------------


def test_quadratic_kappa_is_that_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    labels = RNG.integers(0, 5, 60)
    predicted = np.clip(labels + RNG.integers(-2, 3, 60), 0, 4)
    expected = cohen_kappa_score(labels, predicted, weights="quadratic", labels=range(5))
    assert quadratic_kappa(labels, predicted, 5) == pytest.approx(expected)
    assert quadratic_kappa(labels, labels, 5) == 1
    assert quadratic_kappa(labels, 4 - labels, 5) < 0
    assert quadratic_kappa(np.zeros(3, int), np.zeros(3, int), 5) == 0


def test_figures_of_grades():
    figures = GradeTarget(NAMES).figures(LOGITS, LABELS)
    predicted = LOGITS.argmax(axis=1)
    assert figures["accuracy"] == pytest.approx((predicted == LABELS).mean())
    assert figures["mean_absolute_error"] == pytest.approx(np.abs(predicted - LABELS).mean())
    assert figures["quadratic_kappa"] == quadratic_kappa(LABELS, predicted, 3)


def test_figures_of_several_labels_are_those_of_scikit_learn(tmp_path):
    from sklearn.metrics import accuracy_score, f1_score

    target, said = LabelsTarget(NAMES), LOGITS >= 0
    report = target.report(LOGITS, IS_LABEL, tmp_path)
    assert report["micro_f1"] == pytest.approx(f1_score(IS_LABEL, said, average="micro"))
    assert report["macro_f1"] == pytest.approx(f1_score(IS_LABEL, said, average="macro"))
    assert report["exact_match"] == pytest.approx(accuracy_score(IS_LABEL, said))
    f1 = [row["f1"] for row in report["by_label"].values()]
    assert np.mean(f1) == pytest.approx(report["macro_f1"])
    support = [row["num_examples"] for row in report["by_label"].values()]
    assert support == IS_LABEL.sum(axis=0).tolist()
    nobody = target.figures(-np.ones((4, 3), np.float32), np.zeros((4, 3), bool))
    assert nobody["micro_f1"] == nobody["macro_f1"] == 0 and nobody["exact_match"] == 1


def test_figures_of_numbers_are_those_of_scikit_learn_and_scipy():
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    wanted = (LOGITS[:, 0] * 3 + RNG.normal(size=40)).round().astype(np.float32) * 2 + 10
    figures = NumberTarget((10.0, 5.0)).figures(LOGITS[:, :1], wanted)
    values = 10 + 5 * LOGITS[:, 0].astype(np.float64)
    expected = {
        "loss": np.square((values - wanted) / 5).mean(),
        "rmse": root_mean_squared_error(wanted, values),
        "mean_absolute_error": mean_absolute_error(wanted, values),
        "r2": r2_score(wanted, values),
        "pearson": pearsonr(values, wanted).statistic,
        "spearman": spearmanr(values, wanted).statistic,
    }
    assert figures == pytest.approx(expected, rel=1e-5)
    flat = NumberTarget((10.0, 5.0)).figures(np.zeros((4, 1), np.float32), wanted[:4])
    assert flat["pearson"] == flat["spearman"] == 0 and np.isfinite(list(flat.values())).all()


def test_what_is_served():
    labels = LabelsTarget(NAMES).outputs(tf.constant(LOGITS), 1.0)
    np.testing.assert_array_equal(labels["is_label"], labels["scores"].numpy() >= 0.5)
    assert labels["labels"].shape == labels["scores"].shape == (40, 3)
    value = NumberTarget((10.0, 5.0)).outputs(tf.constant(LOGITS[:, :1]), 1.0)["value"]
    np.testing.assert_allclose(value, 10 + 5 * LOGITS[:, 0], rtol=1e-6)
    cool, hot = (build_target("class", NAMES).outputs(tf.constant(LOGITS), t) for t in (0.5, 9.0))
    np.testing.assert_array_equal(cool["label"], hot["label"])
    assert (cool["scores"].numpy().max(axis=1) > hot["scores"].numpy().max(axis=1)).all()


def test_scale_is_that_of_the_training_split():
    assert scale_of(np.array([1, 3, 5, 7], np.float32)) == pytest.approx((4, np.sqrt(5)))
    with pytest.raises(DatasetError, match="all 3 numbers of the training split are 2"):
        scale_of(np.full(3, 2, np.float32))


def test_more_is_better_but_of_a_loss():
    assert [score_name(name) for name in ("class", "grade", "labels", "number")] == [
        "accuracy",
        "accuracy",
        "micro_f1",
        "loss",
    ]
    assert NumberTarget((0.0, 1.0)).score({"loss": 2.0}) == -2.0
    assert LabelsTarget(NAMES).score({"loss": 2.0, "micro_f1": 0.5}) == 0.5


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [IS_LABEL, LOGITS[:, 0], LABELS.astype(np.int64)])
def test_labels_keep_their_type_in_a_batch_even_in_one_without_texts(labels):
    rows = [np.array([2, 3], np.int32)] * 40
    settings = {"batch_size": 1, "seed": 0, "sampling": "poisson"}
    batches = ClassificationBatches(rows, labels, **settings)
    several = [batches.at(i) for i in range(20)]
    assert {float(batch["weight"].sum()) == 0 for batch in several} == {True, False}
    for batch in several:
        assert batch["label"].dtype == (np.int32 if labels.dtype == np.int64 else labels.dtype)
        assert batch["label"].shape == (len(batch["tokens"]), *labels.shape[1:])


# What goes with what ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["target=order"], "target must be one of class, labels, grade, number"),
        (["target=labels", "label_smoothing=0.1"], "label_smoothing must be 0 with target=labels"),
        (["target=number", "strategy=r_drop(adamw)"], "strategy must be without r_drop with"),
        (["target=labels", "strategy=ema(r_drop(adamw))"], "strategy must be without r_drop with"),
        (
            ["target=number", "objective=distillation", "teacher=topics"],
            "objective must be supervised with target=number",
        ),
        (["target=labels", "class_weights=balanced"], "class_weights must be none with target=lab"),
        (["target=number", "strategy=dp_sgd(sgd)"], "target must be .* with dp_sgd"),
        (
            ["class_weights=balanced", "strategy=dp_sgd(sgd)"],
            "class_weights must be none with dp_sgd",
        ),
        (
            ["objective=distillation", "teacher=topics", "class_weights=balanced"],
            "class_weights does nothing here: it needs objective=supervised",
        ),
        (["target=labels", "calibrate=true"], "calibrate does nothing here"),
        (["target=number", "model.naive_bayes_scale=1"], "naive_bayes_scale does nothing here"),
        (["dataset.label_separator=;"], "dataset.label_separator does nothing here"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(settings, words):
    with pytest.raises(ValueError, match=words):
        override(recipe("sst2"), settings)


@pytest.mark.parametrize(
    "settings",
    [
        ["target=grade", "strategy=r_drop(adamw)", "label_smoothing=0.1"],
        ["target=grade", "class_weights=negative=2"],
        ["target=labels", "strategy=dp_sgd(sgd)"],
        ["target=labels", "calibrate=false"],
    ],
)
def test_what_does_make_sense_is_not(settings):
    config = override(recipe("sst2"), settings)
    assert RunConfig.from_dict(config.to_dict()) == config


def test_pretraining_may_use_what_the_last_stage_may_not():
    """Its targets are tokens, whatever the run judges by."""
    stage = "earlier.read_starter_stories"
    strategy = [f"{stage}.label_smoothing=0.1", f"{stage}.strategy=r_drop(adamw)"]
    override(recipe("sentiment_ulmfit"), ["target=labels", *strategy])
    with pytest.raises(ValueError, match="earlier.head.strategy must be without r_drop"):
        override(recipe("sentiment_ulmfit"), ["target=labels", "earlier.head.strategy=r_drop(sgd)"])


def test_a_generator_judges_nothing():
    with pytest.raises(ValueError, match="target must be class with model=transformer_decoder"):
        override(recipe("stories"), ["target=grade"])
