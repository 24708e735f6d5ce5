"""`evaluate --adapt`: a trained model static and optimised at prediction time, side by side.

A specification is a method and its numbers: `dynamic:rate=0.05,decay=0.01`, `tent`, `ttt:steps=3`,
`neighbours:num_neighbours=16`. Without a rate it is chosen on the run's validation split, never on
the texts that are measured.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.adaptation import (
    Adaptation,
    DynamicEvaluation,
    NeighbourTraining,
    Tent,
    TestTimeTraining,
    entropy,
    padded,
)
from model.config.checks import require
from model.tokenizers import encode
from training.classification import Classifier
from training.config import CLASSIFICATION, GENERATION
from training.datasets import load_dataset
from training.datasets.config import CLASS, GRADE
from training.datasets.examples import ClassificationData, LabelledTexts, TextData
from training.language_model import LanguageModel
from training.losses import classification_loss
from training.runs import write_json

logger = logging.getLogger(__name__)

Learner = Classifier | LanguageModel
Split = LabelledTexts | Sequence[str]
Data = ClassificationData | TextData
Number = float | int | bool | str
Figures = dict[str, float]

RESULTS_FILE = "adaptation.json"
_BATCH = 64  # texts that TENT adapts to together, and that a static classifier reads
_COLLECTED = 64  # windows of the training split that begin the mean squares of `scaling=rms`
_CHOOSING_WINDOWS, _CHOOSING_TEXTS = 256, 256  # of the validation split; of a character a token


@dataclass(frozen=True)
class Method:
    """What `--adapt NAME` stands for: the task it serves, its numbers, the rates to choose from."""

    task: str
    numbers: dict[str, type]
    rates: tuple[float, ...]


_STEPS: dict[str, type] = {"rate": float, "steps": int, "optimizer": str}
METHODS = {
    "dynamic": Method(
        GENERATION,
        {"rate": float, "decay": float, "scaling": str, "epsilon": float},
        (0.003, 0.01, 0.03, 0.1, 0.3),
    ),
    "tent": Method(
        CLASSIFICATION,
        _STEPS | {"batch_size": int, "episodic": bool},
        (1e-4, 1e-3, 1e-2, 1e-1),
    ),
    "ttt": Method(
        CLASSIFICATION,
        _STEPS | {"mask_rate": float, "num_copies": int, "seed": int, "episodic": bool},
        (1e-3, 1e-2, 1e-1),
    ),
    "neighbours": Method(
        CLASSIFICATION, _STEPS | {"num_neighbours": int}, (1e-4, 1e-3, 1e-2, 1e-1)
    ),
}
# Scaled steps have about the size of the rate itself, as Adam's do.
_SCALED_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def adapted_table(
    learner: Learner, split: Split, folder: Path, specs: Sequence[str]
) -> list[list[str]]:
    """Rows of text for a table: the header, the static figures, one row for each of `specs`.

    The same in figures goes to `adaptation.json` in `folder`. The run's own data are read only if a
    method needs them. Raises ValueError for a specification that cannot be read, before anything
    runs, and for a network or a number that the method refuses.
    """
    requests = [parse_adaptation(spec, learner.config.task) for spec in specs]
    target = learner.config.target
    if target not in (CLASS, GRADE):
        raise ValueError(
            f"--adapt is for runs with target={CLASS} or {GRADE}: it is measured by the "
            f"cross-entropy of one label a text. Received: a run with target={target}"
        )
    if any(method == "neighbours" for method, _ in requests) and getattr(
        learner.config.tokenizer, "has_counts", False
    ):
        raise ValueError(
            "--adapt neighbours compares token ids, and with tokenizer.has_counts=true each count "
            "has an id of its own: fit a run with has_counts=false for it."
        )
    needs_data = any(
        "rate" not in numbers or method == "neighbours" or numbers.get("scaling") == "rms"
        for method, numbers in requests
    )
    config = learner.config
    data: Any = load_dataset(config.dataset, config.task, config.target) if needs_data else None
    results = [{"method": "static", **static_figures(learner, split)}]
    for method, numbers in requests:
        if "rate" not in numbers:
            numbers = numbers | {"rate": choose_rate(learner, data, method, numbers)}
        figures = adapted_figures(learner, split, method, numbers, data)
        results.append({"method": _written(method, numbers), **figures})
    write_json(folder / RESULTS_FILE, {"rows": results})
    return [list(results[0]), *([_cell(k, v) for k, v in row.items()] for row in results)]


def evaluate_adapted(
    learner: Learner, split: Split, method: str, numbers: dict[str, Number], data: Data | None
) -> dict[str, Figures]:
    """{"static": ..., "adapted": ...}: figures over the same targets, and what they cost.

    For language models "loss" (nats a token), "perplexity", "bits_per_character", the text read in
    order; for classifiers "loss", "accuracy" and "entropy" (nats). For both "seconds" and
    "gradients", the forward-backward passes. `numbers` with "rate" among them. `data` is the run's
    own, for methods that read training texts.
    """
    return {
        "static": static_figures(learner, split),
        "adapted": adapted_figures(learner, split, method, numbers, data),
    }


def static_figures(learner: Learner, split: Split) -> Figures:
    """What `adapted_figures` gives when nothing moves, over the same targets in the same order."""
    if isinstance(learner, LanguageModel):
        return _read(learner, split, DynamicEvaluation(learner.model, rate=0.0), adapt=False)
    logits = tf.function(
        lambda tokens: learner.model(tokens, training=False),
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
    )
    return _label(learner, split, lambda tokens: logits(tokens).numpy(), None, _BATCH)


def adapted_figures(
    learner: Learner,
    split: Split,
    method: str,
    numbers: dict[str, Number],
    data: Data | None = None,
) -> Figures:
    """The figures under `method`; the weights are the original ones again afterwards.

    Raises FloatingPointError when the weights ran away, with the rate that did it.
    """
    with build_adaptation(learner, method, numbers, data) as adaptation:
        figures = _figures(learner, split, adaptation, numbers)
    if not math.isfinite(figures["loss"]):
        raise FloatingPointError(
            f"The loss under --adapt {_written(method, numbers)} is {figures['loss']}. "
            f"Give a rate below {numbers['rate']}."
        )
    return figures


def choose_rate(
    learner: Learner,
    data: Any,
    method: str,
    numbers: dict[str, Number],
    rates: Sequence[float] | None = None,
) -> float:
    """The one of `rates` (the method's own if None) with the lowest loss on `data.validation`.

    A part of the split decides, and the choice is logged with what it was compared to. Rates
    that run away lose; FloatingPointError if all do.
    """
    scaled = numbers.get("scaling") == "rms" or numbers.get("optimizer") == "adam"
    candidates = rates or (_SCALED_RATES if scaled else METHODS[method].rates)
    validation = _beginning(learner, data.validation)
    losses = {}
    start = numbers | {"rate": candidates[0]}
    with build_adaptation(learner, method, start, data) as adaptation:
        for rate in candidates:
            adaptation.rate = rate
            loss = _figures(learner, validation, adaptation, numbers)["loss"]
            adaptation.reset()
            if math.isfinite(loss):
                losses[rate] = loss
    if not losses:
        tried = ", ".join(f"{rate:g}" for rate in candidates)
        raise FloatingPointError(
            f"Under --adapt {method} the validation loss was finite with none of the rates {tried}."
            f" Give a lower one: {method}:rate=..."
        )
    best = min(losses, key=losses.__getitem__)
    static = static_figures(learner, validation)["loss"]
    tried = ", ".join(f"{rate:g}: {loss:.5g}" for rate, loss in losses.items())
    verdict = "" if losses[best] < static else " No rate is better than static there."
    logger.info(
        f"{method}: rate {best:g} chosen by validation loss "
        f"({tried}; static {static:.5g}).{verdict}"
    )
    return best


def build_adaptation(
    learner: Learner, method: str, numbers: dict[str, Number], data: Any = None
) -> Any:
    """What `method` and its numbers name in `model.adaptation`, over the learner's model."""
    keywords: dict[str, Any] = dict(numbers)
    keywords.pop("batch_size", None)  # of the reading, not of the method
    if method == "dynamic":
        dynamic = DynamicEvaluation(learner.model, **keywords)
        if dynamic.scaling == "rms":
            for tokens, targets in _spread(windows(learner, data.train), _COLLECTED):
                dynamic.collect(tokens, targets)
        return dynamic
    if method == "tent":
        return Tent(learner.model, **keywords)
    if method == "ttt":
        return TestTimeTraining(learner.model, **keywords)
    rows = encode(learner.tokenizer, data.train.texts)
    return NeighbourTraining(learner.model, rows, data.train.labels, **keywords)


def windows(learner: Any, documents: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets), int32 (1, T) each, of every window of every document in reading order.

    The windows, and so the targets, are those of `language_model_windows`.
    """
    length = learner.model.config.context_length
    pairs = []
    for document in learner.encoded(documents):
        for start in range(0, len(document) - 1, length):
            piece = document[None, start : start + length + 1]
            pairs.append((piece[:, :-1], piece[:, 1:]))
    return pairs


# Specifications -----------------------------------------------------------------------------------


def parse_adaptation(spec: str, task: str) -> tuple[str, dict[str, Number]]:
    """The method and the numbers of a specification such as `dynamic:rate=0.05,decay=0.01`.

    Raises ValueError with the known names when one is unknown, and when the method serves another
    `task`.

    >>> parse_adaptation("tent:steps=2,episodic=yes", "classification")
    ('tent', {'steps': 2, 'episodic': True})
    """
    name, _, rest = spec.partition(":")
    if name not in METHODS:
        raise ValueError(f"--adapt takes one of {', '.join(METHODS)}. Received: {name!r}")
    method = METHODS[name]
    if method.task != task:
        fitting = ", ".join(n for n, m in METHODS.items() if m.task == task) or "none"
        kind = "language models" if method.task == GENERATION else "classifiers"
        raise ValueError(f"--adapt {name} is for {kind}. For this run: {fitting}.")
    numbers: dict[str, Number] = {}
    for assignment in filter(None, rest.split(",")):
        key, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator or key not in method.numbers:
            raise ValueError(
                f"--adapt {name} takes {', '.join(f'{n}=...' for n in method.numbers)}, separated "
                f"by commas. Received: {assignment!r}"
            )
        numbers[key] = _value(f"--adapt {name}:{key}", text, method.numbers[key])
    return name, numbers


_TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _value(setting: str, text: str, kind: type) -> Number:
    expected = {float: "a number", int: "a whole number", bool: "yes or no"}
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{setting} must be {expected[kind]}. Received: {text!r}") from None


def _written(method: str, numbers: dict[str, Number]) -> str:
    texts = (
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in numbers.items()
    )
    return f"{method}:{','.join(texts)}"


def _cell(name: str, value: Any) -> str:
    if name == "gradients" or isinstance(value, str):
        return str(value)
    if name in ("perplexity", "seconds"):
        return f"{value:.2f}"
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4f}"


# Figures ------------------------------------------------------------------------------------------


def _figures(
    learner: Learner, split: Split, adaptation: Any, numbers: dict[str, Number]
) -> Figures:
    if isinstance(learner, LanguageModel):
        return _read(learner, split, adaptation, adapt=True)
    batch_size = int(numbers.get("batch_size", _BATCH))
    require(batch_size > 0, "batch_size", "above 0", batch_size)
    return _label(learner, split, adaptation.predict, adaptation, batch_size)


def _read(learner: Any, documents: Any, dynamic: DynamicEvaluation, *, adapt: bool) -> Figures:
    """The figures of a language model; tracing is left out of the seconds."""
    pairs, score = windows(learner, documents), dynamic.score if adapt else dynamic.sums
    for pair in pairs[:1]:
        score(*pair)
    dynamic.reset()
    before, began = dynamic.num_gradients, time.monotonic()
    totals = np.zeros(2)
    for tokens, targets in pairs:
        sums = score(tokens, targets)
        totals += float(sums["loss_sum"]), float(sums["num_targets"])
    seconds, (loss_sum, num_targets) = time.monotonic() - began, totals
    loss = float(loss_sum / max(num_targets, 1.0))
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        # Ends of documents are predicted too, and their cost belongs to the characters.
        "bits_per_character": float(loss_sum) / math.log(2) / max(sum(map(len, documents)), 1),
        "seconds": seconds,
        "gradients": dynamic.num_gradients - before,
    }


def _label(
    learner: Any,
    split: Any,
    predict: Callable[[np.ndarray], np.ndarray],
    adaptation: Adaptation | None,
    batch_size: int,
) -> Figures:
    """The figures of a classifier that reads the texts in order; tracing is left out of seconds."""
    rows = encode(learner.tokenizer, split.texts)
    batches = [padded(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    for batch in batches[:1]:
        predict(batch[:1])
    if adaptation is not None:
        adaptation.reset()
    before = adaptation.num_gradients if adaptation else 0
    began = time.monotonic()
    logits = np.concatenate([predict(batch) for batch in batches])
    seconds = time.monotonic() - began
    sums = classification_loss({"label": tf.constant(split.labels)}, tf.constant(logits))
    count = max(float(sums["num_targets"]), 1.0)
    return {
        "loss": float(sums["loss_sum"]) / count,
        "accuracy": float(sums["num_correct"]) / count,
        "entropy": float(tf.reduce_mean(entropy(logits))),
        "seconds": seconds,
        "gradients": (adaptation.num_gradients if adaptation else 0) - before,
    }


def _beginning(learner: Any, validation: Any) -> Any:
    """Enough of a split to choose a rate by: texts from all of it, documents from the start."""
    if isinstance(validation, LabelledTexts):
        return validation.take(_spread(range(len(validation)), _CHOOSING_TEXTS))
    room = _CHOOSING_WINDOWS * learner.model.config.context_length
    chosen: list[str] = []
    for document in validation:
        if room <= 0:
            break
        chosen.append(document[:room])
        room -= len(document)
    return chosen


def _spread(items: Sequence[Any], count: int) -> Iterator[Any]:
    """Up to `count` of `items`, evenly spread, in order."""
    for position in np.linspace(0, len(items) - 1, min(count, len(items))):
        yield items[round(position)]
