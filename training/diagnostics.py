"""Why a run goes as it goes: numbers gathered over updates and worked out for a report."""

from __future__ import annotations

import math
import time

import numpy as np
import tensorflow as tf

from training.strategies.gradients import global_norm
from training.strategies.rules import SUMS, UpdateRule


class Totals:
    """Sums and counts since the last report; averages are taken only when it is due.

    `correct` names the share of targets that were right; None: there is no right and wrong.
    """

    def __init__(self, unit: str, correct: str | None = "accuracy"):
        self.unit, self.correct = unit, correct
        self.said: list[dict] = []
        self.restart()

    def restart(self) -> None:
        """Begins to time anew: what came between was not training."""
        self.since = time.monotonic()

    def add(self, said: dict) -> None:
        """What some updates said: float32 (K,) by name, left where they are."""
        self.said.append(said)

    def pop(self) -> dict[str, float]:
        """Means over all updates added, and emptied; the gradient norm is that of the worst."""
        series = {
            name: np.concatenate([np.asarray(said[name]) for said in self.said])
            for name in self.said[0]
        }
        total = {name: float(values.sum(dtype=np.float64)) for name, values in series.items()}
        num_targets = max(total["num_targets"], 1.0)
        seconds = time.monotonic() - self.since
        report = {
            "loss": total["loss_sum"] / num_targets,
            # max() passes over a NaN that is not first, and the worst is what must be seen.
            "grad_norm": float(np.max(series["grad_norm"])),
            f"{self.unit}_per_second": total["num_targets"] / seconds,
            "update_seconds": seconds,  # neither evaluating nor saving is in them
        }
        if self.correct:
            report[self.correct] = total["num_correct"] / num_targets
        for name in total.keys() - {*SUMS, "grad_norm"}:
            figure = name.removesuffix("_sum")  # a sum is over targets, anything else over updates
            report[figure] = total[name] / (num_targets if figure != name else len(series[name]))
        self.said = []
        self.restart()
        return report


class UpdateToWeight:
    """|change| / |weights| of the updates before a report, which costs a copy and so is rare."""

    def __init__(self, rule: UpdateRule):
        self.rule, self.count = rule, 0
        self.kept: list[np.ndarray] | None = None

    def before(self, count: int) -> None:
        """Notes the weights if `count` updates, 0 for none, lead to a report."""
        self.count = count
        self.kept = [weight.numpy() for weight in self.rule.weights] if count else None

    def after(self) -> dict[str, float]:
        """The ratio per update, roughly: that of all `count` together over their number."""
        if not self.kept:
            return {}
        now = [tf.convert_to_tensor(weight.value) for weight in self.rule.weights]
        changes = [a - b for a, b in zip(now, self.kept, strict=True)]
        size = float(global_norm(now))
        self.kept = None
        if not size or not math.isfinite(size):
            return {}
        return {"update_to_weight": float(global_norm(changes)) / size / self.count}
