"""Training as a whole: stopping and going on, keeping the best, and noticing what goes wrong."""

import json
import math
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.catalogue import build_model
from model.config import BagOfNgramsConfig, TransformerEncoderConfig
from training import loop
from training.checkpoints import Checkpoints
from training.config import OptimizerConfig
from training.diagnostics import Totals
from training.loop import Plan, fit
from training.losses import TaskLoss, classification_loss
from training.pipeline import ClassificationBatches
from training.progress import Interruption, Log
from training.schedules import Plateau
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.compiled import compile_updates
from training.strategies.rules import OptimizerRule


class Lines(list):
    """A log that only remembers."""

    unit = "examples"

    def begin(self, start, seconds):
        pass

    def report(self, step, metrics):
        self.append((step, metrics))


class Kill(Exception):
    """Stands for a power cut: nothing is saved on the way out."""


# Stopped and resumed equals never stopped ---------------------------------------------------------

STEPS, EVALUATE_EVERY = 12, 5
NETWORKS = {
    "bag_of_ngrams": BagOfNgramsConfig(),
    "transformer_encoder": TransformerEncoderConfig(
        num_layers=1, width=16, num_heads=2, inner_width=16
    ),
}


def sitting(folder, name, stop=None):
    """Everything made anew, as in another process; `stop` is ("request" or "kill", before step)."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(np.arange(1, 30), rng.integers(2, 8), replace=False) for _ in range(36)]
    labels = rng.integers(0, 3, 36).astype(np.int32)  # nothing to learn: the best is not the last
    batches = ClassificationBatches(rows[:28], labels[:28], batch_size=4, seed=3)
    held_out = ClassificationBatches(rows[28:], labels[28:], batch_size=8, seed=0).at(0)
    model = build_model(NETWORKS[name], 30, 3, seed=7)
    config = OptimizerConfig(
        peak_learning_rate=0.03, schedule="cosine(warmup=3)", weight_decay=0.1, clip_norm=0.5
    )
    task = TaskLoss(lambda b: model(b["tokens"], training=True), classification_loss)
    weights = model.trainable_variables
    rule = build_rule("lookahead(adamw, k=4)", task, weights, config, num_updates=STEPS)
    checkpoints = Checkpoints(folder, model, rule)
    lines = Lines()

    def batches_of(step, count):
        if stop == ("request", step):
            signal.raise_signal(signal.SIGINT)
        if stop == ("kill", step):
            raise Kill
        return stack([batches.at(step)])

    def evaluate():
        sums = classification_loss(held_out, model(held_out["tokens"], training=False))
        return {
            "loss": float(sums["loss_sum"]) / 8,
            "accuracy": float(sums["num_correct"]) / 8,
        }

    try:
        outcome = fit(
            Plan(steps=STEPS, evaluate_every=EVALUATE_EVERY),
            rule=rule,
            take_updates=compile_updates(rule),
            batches_of=batches_of,
            evaluate=evaluate,
            score=lambda metrics: metrics["accuracy"],
            checkpoints=checkpoints,
            log=lines,
        )
    except Kill:
        return None
    progress = {k: float(v) for k, v in checkpoints.progress.items() if k != "seconds"}
    state = [v.numpy() for v in [*model.variables, *rule.variables]]
    checkpoints.restore_best()
    best = [v.numpy() for v in model.variables]
    figures = {step: m for step, m in lines if "validation_loss" in m}
    return SimpleNamespace(
        outcome=outcome, state=state, progress=progress, best=best, figures=figures
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return {name: sitting(tmp_path_factory.mktemp(name), name) for name in NETWORKS}


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("bag_of_ngrams", [("request", 6)]),  # between two evaluations, inside the first pass
        ("bag_of_ngrams", [("request", 4)]),  # at an evaluation
        ("bag_of_ngrams", [("kill", 8)]),  # goes back to the last evaluation
        ("bag_of_ngrams", [("kill", 2), ("kill", 3), ("request", 3), ("request", 9)]),
        ("transformer_encoder", [("request", 7)]),
    ],
    ids=str,
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    uninterrupted, name, stops, tmp_path
):
    for stop in stops:
        part = sitting(tmp_path, name, stop)
        assert (part is None) == (stop[0] == "kill")
        if part:
            assert (part.outcome.reason, part.outcome.step) == ("interrupted", stop[1] + 1)
    resumed, whole = sitting(tmp_path, name), uninterrupted[name]
    assert resumed.outcome.reason == "finished"
    assert resumed.progress == whole.progress
    assert resumed.progress["step"] == STEPS
    for a, b in zip(resumed.state + resumed.best, whole.state + whole.best, strict=True):
        np.testing.assert_array_equal(a, b)
    for step, metrics in resumed.figures.items():
        assert whole.figures[step] == metrics


def test_the_comparison_could_fail(uninterrupted):
    """Dropout is on, the run moves its weights, and it keeps a best that is not the last."""
    run = uninterrupted["bag_of_ngrams"]
    assert list(run.figures) == [0, 5, 10, 12]
    assert len({metrics["validation_loss"] for metrics in run.figures.values()}) == 4
    assert any((a != b).any() for a, b in zip(run.state, run.best, strict=False))


def test_a_finished_run_does_nothing_more(uninterrupted, tmp_path):
    first = sitting(tmp_path, "bag_of_ngrams")
    again = sitting(tmp_path, "bag_of_ngrams", stop=("kill", 0))
    assert again.outcome.reason == "finished" and not again.figures
    assert again.progress == first.progress
    for a, b in zip(again.state, first.state, strict=True):
        np.testing.assert_array_equal(a, b)


# Scripted: one weight that counts the updates, and figures that are given -----------------------


def scripted(
    folder, scores, *, steps=100, patience=0, losses=None, train_step=None, plateau=None, **settings
):
    """Evaluates after every update; scores[i] and losses[i] are the figures at step i."""
    weight = keras.Variable(0.0)
    checkpoints = Checkpoints(folder, SimpleNamespace(variables=[weight]))
    lines = Lines()

    def add_one(batch):
        weight.assign_add(1.0)
        said = {"loss_sum": 1.0, "num_targets": 1.0, "num_correct": 0.0, "grad_norm": 1.0}
        return {name: np.array([value]) for name, value in said.items()}

    def evaluate():
        step = int(weight.numpy())
        return {"accuracy": scores[step], "loss": losses[step] if losses else 1.0}

    result = SimpleNamespace(weight=weight, checkpoints=checkpoints, lines=lines, multipliers=[])
    result.outcome = fit(
        Plan(**{"steps": steps, "evaluate_every": 1, "patience": patience} | settings),
        rule=OptimizerRule(None, None, [weight]),
        take_updates=(lambda batch: train_step(weight, add_one)) if train_step else add_one,
        batches_of=lambda step, count: None,
        evaluate=evaluate,
        score=lambda metrics: metrics["accuracy"],
        checkpoints=checkpoints,
        log=lines,
        plateau=plateau,
        set_rate_multiplier=result.multipliers.append,
    )
    return result


def best_weight(run):
    run.checkpoints.restore_best()
    return float(run.weight.numpy())


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_its_patience(tmp_path, patience):
    scores = [0.1, 0.2, 0.5, 0.4, 0.3, 0.5, 0.4, 0.4, 0.9]
    run = scripted(tmp_path, scores, patience=patience)
    assert (run.outcome.reason, run.outcome.step) == ("early", 2 + patience)
    assert run.outcome.best_step == 2


def test_a_new_best_gives_new_patience(tmp_path):
    scores = [0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0, 0.0]
    run = scripted(tmp_path, scores, patience=2)
    assert (run.outcome.reason, run.outcome.step, run.outcome.best_step) == ("early", 6, 4)


def test_without_patience_it_never_stops_early(tmp_path):
    run = scripted(tmp_path, [0.5] + [0.1] * 9, steps=9)
    assert (run.outcome.reason, run.outcome.step) == ("finished", 9)


def test_the_best_weights_are_kept_and_not_the_last(tmp_path):
    run = scripted(tmp_path, [0.1, 0.4, 0.9, 0.3, 0.8], steps=4)
    assert run.outcome.best_step == 2
    assert best_weight(run) == 2.0


def test_a_run_that_only_gets_worse_keeps_where_it_started(tmp_path):
    assert best_weight(scripted(tmp_path, [0.9, 0.4, 0.3], steps=2)) == 0.0


def test_equal_scores_go_by_the_loss(tmp_path):
    run = scripted(tmp_path, [0.5, 0.8, 0.8, 0.8, 0.7], losses=[1.0, 0.6, 0.4, 0.5, 0.1], steps=4)
    assert run.outcome.best_step == 2
    assert best_weight(run) == 2.0


def test_patience_is_not_used_up_by_being_killed(tmp_path):
    """The first figure is not taken twice: it would count against itself."""
    scores = [0.5, 0.4, 0.3, 0.2, 0.1]

    def killed_at_once(weight, add_one):
        raise Kill

    for _ in range(3):
        with pytest.raises(Kill):
            scripted(tmp_path, scores, patience=2, train_step=killed_at_once)
    run = scripted(tmp_path, scores, patience=2)
    assert (run.outcome.reason, run.outcome.step) == ("early", 2)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    scores = [0.5, 0.4, 0.3, 0.9]
    first = scripted(tmp_path, scores, patience=2)
    again = scripted(tmp_path, scores, patience=2)
    assert (again.outcome.reason, again.outcome.step) == ("early", first.outcome.step)


def test_evaluation_comes_in_its_turn_and_at_the_end(tmp_path):
    run = scripted(tmp_path, [0.5] * 9, steps=8, evaluate_every=3)
    evaluated = [step for step, metrics in run.lines if "validation_loss" in metrics]
    assert evaluated == [0, 3, 6, 8]


def test_reports_come_in_their_turn_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 4)
    run = scripted(tmp_path, [0.5] * 11, steps=10, evaluate_every=10)
    assert [step for step, metrics in run.lines if "loss" in metrics] == [4, 8, 10]


@pytest.mark.parametrize("field", ["loss_sum", "grad_norm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stops_the_run_and_leaves_a_good_checkpoint(tmp_path, field, bad):
    """Update 4 is the bad one, update 6 the next report: what stands between does not hide it."""

    def spoilt_at_four(weight, add_one):
        sums = add_one(None)
        if weight.numpy() == 4:
            weight.assign(math.nan)
            return sums | {field: np.array([bad])}
        return sums

    with pytest.raises(FloatingPointError, match="update 6.*optimizer.peak_learning_rate"):
        scripted(tmp_path, [0.5] * 20, steps=10, evaluate_every=3, train_step=spoilt_at_four)
    weight = keras.Variable(-1.0)
    checkpoints = Checkpoints(tmp_path, SimpleNamespace(variables=[weight]))
    assert checkpoints.restore_last() == 3
    assert weight.numpy() == 3.0


def test_training_ends_when_it_has_converged(tmp_path):
    """The loss of update t is 1 / t: at most 0.25 from the fourth on, three of them in a row."""

    def falling(weight, add_one):
        said = add_one(None)
        return said | {"loss_sum": np.array([1.0 / weight.numpy()])}

    plan = {"evaluate_every": 100, "stop_loss": 0.25, "stop_updates": 3}
    run = scripted(tmp_path, [0.5] * 50, train_step=falling, **plan)
    assert (run.outcome.reason, run.outcome.step) == ("converged", 6)
    steps = [step for step, metrics in run.lines if "validation_loss" in metrics]
    assert steps == [0, 6]  # the end is evaluated
    # Killed before that was written down, it has still converged: no update is added.
    again = scripted(tmp_path, [0.5] * 50, train_step=falling, **plan)
    assert (again.outcome.reason, again.outcome.step) == ("converged", 6)


def test_a_low_gradient_norm_must_last(tmp_path):
    """Low at updates 2, 3 and from 5 on: two in a row are had at 3, three only at 7."""

    def uneven(weight, add_one):
        step = int(weight.numpy()) + 1
        return add_one(None) | {"grad_norm": np.array([0.1 if step not in (1, 4) else 1.0])}

    for count, expected in ((2, 3), (3, 7)):
        run = scripted(
            tmp_path / str(count),
            [0.5] * 50,
            train_step=uneven,
            evaluate_every=100,
            stop_grad_norm=0.5,
            stop_updates=count,
        )
        assert (run.outcome.reason, run.outcome.step) == ("converged", expected)


def test_a_plateau_lowers_the_rate_and_remembers_it_when_resumed(tmp_path):
    scores = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
    whole = scripted(tmp_path / "a", scores, steps=6, plateau=Plateau(factor=0.5, patience=2))
    assert whole.multipliers[-6:] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    scripted(tmp_path / "b", scores, steps=3, plateau=Plateau(factor=0.5, patience=2))
    again = scripted(tmp_path / "b", scores, steps=6, plateau=Plateau(factor=0.5, patience=2))
    assert again.multipliers == whole.multipliers[-4:]


# Totals -------------------------------------------------------------------------------------------


def sums(loss_sum, num_targets, num_correct=0.0, grad_norm=1.0):
    names = ("loss_sum", "num_targets", "num_correct", "grad_norm")
    values = (loss_sum, num_targets, num_correct, grad_norm)
    return {name: tf.constant([value]) for name, value in zip(names, values, strict=True)}


def test_totals_are_means_over_targets_and_not_over_batches():
    totals = Totals("tokens")
    totals.add(sums(10.0, 1.0, 1.0))
    totals.add(sums(0.0, 9.0, 1.0))
    report = totals.pop()
    assert (report["loss"], report["accuracy"]) == (1.0, pytest.approx(0.2))
    assert report["tokens_per_second"] > 0
    totals.add(sums(3.0, 1.0))
    assert totals.pop()["loss"] == 3.0  # emptied in between


def test_what_a_rule_adds_up_is_averaged_over_targets_and_what_it_counts_over_updates():
    totals = Totals("tokens")
    for rise, num_targets in ((6.0, 1.0), (2.0, 3.0)):
        more = {"sharpness_sum": tf.constant([rise]), "num_skipped": tf.constant([1.0])}
        totals.add(sums(1.0, num_targets) | more)
    report = totals.pop()
    assert (report["sharpness"], report["num_skipped"]) == (2.0, 1.0)
    assert "sharpness_sum" not in report


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_gradient_that_is_not_finite_is_seen_wherever_it_stands(at):
    totals = Totals("examples")
    for i in range(3):
        totals.add(sums(1.0, 1.0, grad_norm=math.nan if i == at else float(i)))
    assert math.isnan(totals.pop()["grad_norm"])
    for norm in (2.0, 5.0, 3.0):
        totals.add(sums(1.0, 1.0, grad_norm=norm))
    assert totals.pop()["grad_norm"] == 5.0


# The log ------------------------------------------------------------------------------------------


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(folder, start=None, **stage):
    started = Log(folder, steps=10, unit="examples", title="run", **stage)
    started.begin(start, 0.0)
    return started


def test_metrics_are_lines_of_json(tmp_path):
    written = log(tmp_path)
    written.report(0, {"validation_loss": 0.7})
    written.report(2, {"loss": 0.5, "examples_per_second": 12.0})
    written.close()
    lines = read_lines(tmp_path)
    assert [line.pop("seconds") >= 0 for line in lines] == [True, True]
    assert lines == [
        {"step": 0, "validation_loss": 0.7},
        {"step": 2, "loss": 0.5, "examples_per_second": 12.0},
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    """They will be written again; a half line is what a kill leaves behind."""
    first = log(tmp_path)
    for step in (0, 5, 8):
        first.report(step, {"loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    second = log(tmp_path, start=5)
    second.report(7, {"loss": 7.5})
    second.close()
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [
        (0, 0.0),
        (5, 5.0),
        (7, 7.5),
    ]


def test_a_kill_while_lines_are_dropped_loses_none_of_the_others(tmp_path, monkeypatch):
    first = log(tmp_path)
    for step in (0, 5, 8):
        first.report(step, {"loss": float(step)})
    first.close()

    def killed(*arguments):
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr("training.progress.os.replace", killed)
        with pytest.raises(Kill):
            log(tmp_path, start=5)
    assert [line["step"] for line in read_lines(tmp_path)] == [0, 5, 8]


# Interruption -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_waits_for_the_step_and_the_second_does_not(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert not interruption
        signal.raise_signal(number)
        assert interruption
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
