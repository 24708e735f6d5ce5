"""All of training in reading order: fetch, step, report, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from training.checkpoints import Checkpoints
from training.progress import Interruption, Log

REPORT_EVERY = 50  # updates; between reports the numbers stay on the device
SAVE_EVERY = 20.0  # seconds at most that a kill may cost


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is "finished", "early" (no progress) or "interrupted"."""

    reason: str
    step: int
    best_step: int
    seconds: float  # of training and evaluation, all sittings of the run together


class Totals:
    """Sums and counts since the last report; averages are taken only when it is due."""

    def __init__(self, unit: str):
        self.unit, self.since = unit, time.monotonic()
        self.sums: list[dict] = []

    def add(self, sums: dict) -> None:
        self.sums.append(sums)

    def pop(self) -> dict[str, float]:
        """Means over all updates added, and emptied; the gradient norm is that of the worst."""
        total = {name: sum(float(s[name]) for s in self.sums) for name in self.sums[0]}
        # max() passes over a NaN that is not first, and the worst is what must be seen.
        norms = [float(sums["grad_norm"]) for sums in self.sums]
        worst = max(norms) if all(map(math.isfinite, norms)) else math.nan
        num_targets = max(total["num_targets"], 1.0)
        report = {
            "loss": total["loss_sum"] / num_targets,
            "accuracy": total["num_correct"] / num_targets,
            "grad_norm": worst,
            f"{self.unit}_per_second": total["num_targets"] / (time.monotonic() - self.since),
        }
        self.sums, self.since = [], time.monotonic()
        return report


def fit(
    *,
    steps: int,
    evaluate_every: int,
    patience: int,
    train_step: Callable[[dict], dict],
    batch_at: Callable[[int], dict],
    evaluate: Callable[[], dict[str, float]],
    score: Callable[[dict[str, float]], float],
    checkpoints: Checkpoints,
    log: Log,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, until `steps` updates are done.

    `evaluate` returns the validation metrics ("loss" among them), `score` the number of them that
    is to grow; of equal scores the lower loss is better. The best weights are kept, and after
    `patience` evaluations without a new best (0: never) the run ends early. Ctrl-C saves and
    returns. Raises FloatingPointError when the loss or the gradient is not finite: the checkpoints
    then hold the last good state.
    """
    step, progress = checkpoints.restore_last(), checkpoints.progress
    earlier, began, saved = float(progress["seconds"]), time.monotonic(), time.monotonic()
    totals = Totals(log.unit)

    def outcome(reason: str) -> Outcome:
        return Outcome(reason, step, int(progress["best_step"]), float(progress["seconds"]))

    def save() -> None:
        nonlocal saved
        progress["seconds"].assign(earlier + time.monotonic() - began)
        checkpoints.save_last(step)
        saved = time.monotonic()

    def evaluate_and_keep() -> None:
        metrics = evaluate()
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(_not_finite("validation loss", metrics["loss"], step))
        log.report(step, {f"validation_{name}": value for name, value in metrics.items()})
        new = (score(metrics), -metrics["loss"])
        if new > (float(progress["best_score"]), -float(progress["best_loss"])):
            progress["best_score"].assign(new[0])
            progress["best_loss"].assign(metrics["loss"])
            progress["best_step"].assign(step)
            progress["num_stale"].assign(0)
            checkpoints.save_best(step)
        else:
            progress["num_stale"].assign_add(1)

    with Interruption() as interruption:
        if step == 0 and int(progress["best_step"]) < 0:  # not again after a kill in early updates
            evaluate_and_keep()  # where it starts from: the figure that training has to beat
            save()
            totals = Totals(log.unit)
        while step < steps:
            if patience and int(progress["num_stale"]) >= patience:
                return outcome("early")
            totals.add(train_step(batch_at(step)))
            step += 1
            evaluation_due = step % evaluate_every == 0 or step == steps
            if not (evaluation_due or interruption or step % REPORT_EVERY == 0):
                continue
            report = totals.pop()
            if not all(map(math.isfinite, report.values())):
                what = f"loss or its gradient norm ({report['grad_norm']})"
                raise FloatingPointError(_not_finite(what, report["loss"], step))
            log.report(step, report)
            if evaluation_due:
                evaluate_and_keep()
            if evaluation_due or interruption or time.monotonic() - saved > SAVE_EVERY:
                save()
                totals.since = time.monotonic()
            if interruption and step < steps:
                return outcome("interrupted")
    return outcome("finished")


def _not_finite(what: str, value: float, step: int) -> str:
    return (
        f"The {what} is not finite any more: {value} at update {step}. Lower "
        "optimizer.peak_learning_rate or optimizer.clip_norm and train again; the last good "
        "checkpoint is kept."
    )
