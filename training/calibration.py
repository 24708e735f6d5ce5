"""How far the scores of a classifier can be believed: temperature, calibration error, a picture.

Axes: N texts, K labels.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize
from scipy.special import log_softmax

logger = logging.getLogger(__name__)

NUM_BINS = 15  # of Guo et al., 2017, sec. 4.1
LEAST_TEXTS = 100  # with fewer held-out texts a temperature would follow chance
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are looked at


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes the mean of -log softmax(logits / T)[label] smallest (Guo et al., sec. 4.2).

    `logits` float (N, K), `labels` int (N,). The mean is convex in 1 / T, so in log T it has one
    minimum, looked for from 0.05 to 20. With fewer than 100 texts it is 1.
    """
    if len(labels) < LEAST_TEXTS:
        return 1.0
    found = optimize.minimize_scalar(
        lambda log_t: nats(logits, labels, math.exp(log_t)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(float(found.x))


def nats(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The mean of -log softmax(logits / temperature)[label]."""
    log_p = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return -float(log_p[np.arange(len(labels)), labels].mean())


def calibration_figures(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> dict[str, Any]:
    """{"temperature", "before", "after"}: loss (nats), ECE and adaptive ECE without and with it."""
    return {"temperature": temperature} | {
        when: {
            "loss": nats(logits, labels, t),
            "ece": calibration_error(*certainty(logits, labels, t)),
            "adaptive_ece": calibration_error(*certainty(logits, labels, t), adaptive=True),
        }
        for when, t in (("before", 1.0), ("after", temperature))
    }


def certainty(
    logits: np.ndarray, labels: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of each text the score of its predicted label, float (N,), and whether that is right."""
    log_p = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return np.exp(log_p.max(axis=1)), logits.argmax(axis=1) == labels


def calibration_error(
    score: np.ndarray, is_right: np.ndarray, *, num_bins: int = NUM_BINS, adaptive: bool = False
) -> float:
    """Expected calibration error: sum over bins of share |accuracy - mean score|.

    Guo et al. (2017), eq. 3, with bins (m-1)/M < score <= m/M. `adaptive` bins hold equally many
    texts, in the order of their scores (Nguyen & O'Connor, 2015, sec. 4).
    """
    bins = _bins(score, num_bins, adaptive)
    gaps = [abs(float((is_right[i] - score[i]).sum())) for i in bins]
    return sum(gaps) / max(len(score), 1)


def draw_reliability(
    logits: np.ndarray, labels: np.ndarray, temperature: float, path: Path
) -> None:
    """Accuracy over score by bins, without and with the temperature; a PNG (Guo et al., fig. 1)."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    panels = {"as trained (temperature 1)": 1.0}
    if temperature != 1.0:
        panels[f"as served (temperature {temperature:.3g})"] = temperature
    figure = Figure(figsize=(4.2 * len(panels), 4.0), layout="constrained")  # inches
    plots = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, t) in zip(plots, panels.items(), strict=True):
        score, is_right = certainty(logits, labels, t)
        bins = _bins(score, NUM_BINS, adaptive=False)
        height = [float(is_right[i].mean()) if len(i) else 0.0 for i in bins]
        left = np.arange(NUM_BINS) / NUM_BINS
        axes.bar(left, height, 1 / NUM_BINS, align="edge", edgecolor="white")
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
        axes.set_title(f"{title}\nECE {calibration_error(score, is_right):.4f}", fontsize="medium")
        axes.set_xlabel("score of the label")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    plots[0].set_ylabel("share that is right")
    figure.savefig(path, dpi=110)


def _bins(score: np.ndarray, num_bins: int, adaptive: bool) -> list[np.ndarray]:
    """Indices of the texts of each bin."""
    if adaptive:
        return np.array_split(np.argsort(score, kind="stable"), num_bins)
    number = np.clip(np.ceil(score * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [np.flatnonzero(number == m) for m in range(num_bins)]
