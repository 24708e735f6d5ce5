"""First steps: six small programs, each with one main loop and a check of its known answer.

`take` is that loop: fetch, update, report. What differs from program to program is a `Problem`: its
arrays, its network, its loss and its check. Axes: B batch, S source steps, T steps, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from model.catalogue import construct
from model.config import WordTokenizerConfig
from model.config.first_steps import (
    DenseClassifierConfig,
    LinearRegressionConfig,
    LSTMClassifierConfig,
    LSTMTaggerConfig,
    Seq2SeqTransformerConfig,
)
from model.first_steps import DenseClassifier, LinearRegression, LSTMClassifier, LSTMTagger
from model.seq2seq import Seq2SeqTransformer
from model.tokenizers import BEGIN, END, encode, train_tokenizer
from training.config import FULL_BATCH
from training.diagnostics import Totals
from training.losses import TaskLoss, classification_loss, language_model_loss
from training.recipes.first_steps import FirstStep
from training.sampling import SHUFFLED, choose_plan
from training.stacking import stack
from training.strategies.build import build_rule
from training.strategies.catalogue import batches_per_update, resolve, with_full_batches
from training.strategies.compiled import compile_updates
from training.strategies.rules import evaluating

NUM_REPORTS = 10  # of the loss


@dataclass(frozen=True)
class Finding:
    """A quantity whose answer is known, what the program found for it, and whether that is it."""

    quantity: str
    known: str
    found: str
    is_ok: bool


@dataclass(frozen=True)
class Problem:
    """What a program learns: equally long arrays, a network, the loss of a batch, a check."""

    arrays: dict[str, np.ndarray]
    model: tf.Module
    loss: TaskLoss
    check: Callable[[], list[Finding]]


def take(step: FirstStep, report: Callable[[int, float], None]) -> list[Finding]:
    """Runs the program; `report` is told the update and the mean loss since the last report.

    Raises FloatingPointError when the loss is not finite any more.
    """
    tf.config.experimental.enable_op_determinism()
    problem = PROBLEMS[step.name](step.seed)
    batches = ArrayBatches(problem.arrays, step)
    rule = build_rule(
        batches.strategy,
        problem.loss,
        problem.model.trainable_variables,
        step.optimizer,
        num_updates=step.updates,
        seed=step.seed,
    )
    take_update, totals = compile_updates(rule), Totals("examples")
    every = math.ceil(step.updates / NUM_REPORTS)
    for update in range(step.updates):
        totals.add(take_update(batches.of_update(update, rule.num_batches)))
        if (update + 1) % every == 0 or update + 1 == step.updates:
            report(update + 1, _finite(totals.pop()["loss"], update + 1))
    with evaluating(rule):  # in the weights that the strategy holds for the answer
        return problem.check()


def _finite(loss: float, update: int) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"The loss is not finite any more: {loss} at update {update}. Lower "
            "optimizer.peak_learning_rate."
        )
    return loss


class ArrayBatches:
    """The examples of a problem in batches of the asked size, in a new order every pass."""

    def __init__(self, arrays: dict[str, np.ndarray], step: FirstStep):
        self.arrays, self.num_examples = arrays, len(next(iter(arrays.values())))
        self.plan = choose_plan(
            self,
            step.batch_size,
            sampling=SHUFFLED,
            seed=step.seed,
            num_updates=step.updates,
            batches_per_update=batches_per_update(resolve(step.strategy)),
        )
        self.strategy = step.strategy
        if step.batch_size == FULL_BATCH and self.plan.num_batches > 1:
            self.strategy = with_full_batches(step.strategy, self.plan.num_batches)

    def of_update(self, update: int, num_batches: int) -> dict[str, np.ndarray]:
        """The `num_batches` micro-batches of one update, stacked."""
        indices = range(update * num_batches, (update + 1) * num_batches)
        return stack([self._at(index) for index in indices])

    def _at(self, index: int) -> dict[str, np.ndarray]:
        rows = self.plan.at(index)
        return {name: array[rows] for name, array in self.arrays.items()}

    def examples(self, rng: np.random.Generator | None) -> np.ndarray:
        return np.arange(self.num_examples)

    def example_lengths(self, examples: np.ndarray) -> np.ndarray:
        return np.zeros(len(examples))  # all are padded alike: none waits for its like


# 1. A line ----------------------------------------------------------------------------------------


def linear_regression(seed: int) -> Problem:
    """y = 2 x + 1 + noise, the noise even in [0, 0.5).

    With x symmetric around 0 the intercept of least squares is the mean of y, so exactly 1 plus the
    mean of the noise; its slope is 2 plus what noise and x share by chance.
    """
    rng = np.random.default_rng([seed, 1])
    x = np.linspace(-1, 1, 200)
    noise = rng.uniform(0, 0.5, len(x))
    y = 2 * x + 1 + noise
    slope, intercept = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y)[0]
    deviation = noise.std() / math.sqrt((x**2).sum())  # standard error of the slope
    model = construct(
        lambda: LinearRegression(LinearRegressionConfig()), np.zeros((1, 1), np.float32), seed=seed
    )

    def check() -> list[Finding]:
        found_slope, found_intercept = (float(np.squeeze(v)) for v in model.trainable_variables)
        return [
            _number("slope", 2, found_slope, 4 * deviation),
            _number("slope by least squares", slope, found_slope, 1e-3),
            _number("intercept: 1 + mean of the noise", 1 + noise.mean(), found_intercept, 1e-3),
            _number("intercept by least squares", intercept, found_intercept, 1e-3),
        ]

    arrays = {"x": x[:, None].astype(np.float32), "y": y[:, None].astype(np.float32)}
    loss = TaskLoss(lambda batch: model(batch["x"], training=True), squared_error)
    return Problem(arrays, model, loss, check)


def squared_error(batch: dict[str, tf.Tensor], predicted: tf.Tensor) -> dict[str, tf.Tensor]:
    """Sums of (predicted - y)^2 for float (B, 1); a number is never counted as correct."""
    return {
        "loss_sum": tf.reduce_sum(tf.square(predicted - batch["y"])),
        "num_targets": tf.cast(tf.size(batch["y"]), tf.float32),
        "num_correct": tf.constant(0.0),
    }


# 2. Two dense layers ------------------------------------------------------------------------------


def dense_classifier(seed: int) -> Problem:
    """A disc of radius 1 inside a ring from 1.5 to 2.5: no line divides them, a circle does.

    As nothing lies between, the best classifier is right on every point.
    """
    rng = np.random.default_rng([seed, 2])
    points, label = disc_and_ring(rng, 200)
    new_points, new_label = disc_and_ring(rng, 1_000)
    model = construct(lambda: DenseClassifier(DenseClassifierConfig(), 2), points[:1], seed=seed)

    def check() -> list[Finding]:
        right, new_right = (
            np.argmax(model(p), axis=1) == known
            for p, known in ((points, label), (new_points, new_label))
        )
        return [
            _share("accuracy on the points it learned from", right),
            _share("accuracy on new points", new_right, at_least=0.99),
        ]

    loss = TaskLoss(lambda batch: model(batch["features"], training=True), classification_loss)
    return Problem({"features": points, "label": label}, model, loss, check)


def disc_and_ring(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 (count, 2) and labels int32 (count,): 0 for the disc, 1 for the ring."""
    label = (np.arange(count) % 2).astype(np.int32)
    radius = np.where(label, rng.uniform(1.5, 2.5, count), np.sqrt(rng.uniform(0, 1, count)))
    angle = rng.uniform(0, 2 * np.pi, count)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points.astype(np.float32), label


# 3. Embedding + LSTM, an answer at every token ----------------------------------------------------

_ZERO, _ONE = 1, 2  # tokens
_EVEN, _ODD = 1, 2  # labels; 0 is padding, as everywhere


def lstm_tagger(seed: int) -> Problem:
    """Zeros and ones; at each token, whether the number of ones so far is even or odd.

    One bit of memory answers it, and no look at the last few tokens does.
    """
    rng = np.random.default_rng([seed, 3])
    tokens, targets = zeros_and_ones(rng, 1_000, shortest=6, longest=12)
    new_tokens, new_targets = zeros_and_ones(rng, 200, shortest=13, longest=20)
    model = construct(
        lambda: LSTMTagger(LSTMTaggerConfig(), vocabulary_size=3, num_labels=3),
        tokens[:1],
        seed=seed,
    )

    def check() -> list[Finding]:
        right, new_right = (
            np.argmax(model(read), axis=2)[known != 0] == known[known != 0]
            for read, known in ((tokens, targets), (new_tokens, new_targets))
        )
        return [
            _share("accuracy by token on the texts it learned from", right),
            _share("accuracy by token on longer ones", new_right),
        ]

    loss = TaskLoss(lambda batch: model(batch["tokens"], training=True), language_model_loss)
    return Problem({"tokens": tokens, "targets": targets}, model, loss, check)


def zeros_and_ones(
    rng: np.random.Generator, count: int, *, shortest: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets int32 (count, longest); lengths are even in the range, then padding."""
    tokens = rng.integers(_ZERO, _ONE + 1, (count, longest))
    length = rng.integers(shortest, longest + 1, (count, 1))
    tokens = np.where(np.arange(longest) < length, tokens, 0)
    is_odd = np.cumsum(tokens == _ONE, axis=1) % 2
    targets = np.where(tokens != 0, np.where(is_odd, _ODD, _EVEN), 0)
    return tokens.astype(np.int32), targets.astype(np.int32)


# 4. Tokenizer + padding + Embedding + LSTM --------------------------------------------------------

LABELS = ("blame", "praise")
SENTENCES = {
    "praise": (
        "I love this film",
        "a wonderful story and great actors",
        "what a great evening, I loved it",
        "the best book I have read",
        "the food was good and the people were friendly",
        "really beautiful, I love it",
        "very good, works perfectly",
        "这部电影很好看",
        "我很喜欢这本书",
        "味道很好，下次还来",
        "房间干净，服务很好",
        "质量不错，非常满意",
        "演员很棒，故事很感人",
        "太好了，我非常喜欢",
    ),
    "blame": (
        "I hate this film",
        "a boring story and terrible actors",
        "what a terrible evening, I hated it",
        "the worst book I have read",
        "the food was bad and the people were rude",
        "really ugly, I hate it",
        "very bad, broke at once",
        "这部电影很难看",
        "我很讨厌这本书",
        "味道很差，再也不来了",
        "房间很脏，服务很差",
        "质量太差，非常失望",
        "演员很烂，故事很无聊",
        "太糟了，我非常讨厌",
    ),
}
NEW_SENTENCES = (
    ("I love this wonderful book", "praise"),
    ("great food and friendly people", "praise"),
    ("I hate this boring book", "blame"),
    ("terrible food and rude people", "blame"),
    ("我非常喜欢这部电影", "praise"),
    ("服务很好，非常满意", "praise"),
    ("我非常讨厌这部电影", "blame"),
    ("服务很差，非常失望", "blame"),
)


def lstm_classifier(seed: int) -> Problem:
    """Sentences that praise and their opposites; then new ones of the same words."""
    texts = [text for label in LABELS for text in SENTENCES[label]]
    label = np.repeat(np.arange(2, dtype=np.int32), [len(SENTENCES[name]) for name in LABELS])
    tokenizer = train_tokenizer(texts, WordTokenizerConfig(min_count=1))
    tokens = padded(encode(tokenizer, texts))
    new_tokens = padded(encode(tokenizer, [text for text, _ in NEW_SENTENCES]))
    model = construct(
        lambda: LSTMClassifier(LSTMClassifierConfig(), tokenizer.vocabulary_size, len(LABELS)),
        tokens[:1],
        seed=seed,
    )

    def check() -> list[Finding]:
        said = [LABELS[i] for i in np.argmax(model(new_tokens), axis=1)]
        return [
            _share("accuracy on what it learned from", np.argmax(model(tokens), axis=1) == label),
            *(
                Finding(text, known, found, found == known)
                for (text, known), found in zip(NEW_SENTENCES, said, strict=True)
            ),
        ]

    loss = TaskLoss(lambda batch: model(batch["tokens"], training=True), classification_loss)
    return Problem({"tokens": tokens, "label": label}, model, loss, check)


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """int32 (B, T), T the longest row; id 0 pads."""
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tokens


# 5. An encoder-decoder Transformer ----------------------------------------------------------------

_FIRST_LETTER = END + 1
_NUM_LETTERS, _SHORTEST, _LONGEST = 10, 3, 6
_NUM_LEARNED, _NUM_ASKED = 20_000, 200
_WIDTH = 64


def transformer(seed: int, *, is_reversed: bool) -> Problem:
    """Texts of 3 to 6 random letters, to be said as they are or backwards.

    None of the texts that it is asked in the end is among those it learned from.
    """
    texts = different_texts(np.random.default_rng([seed, 5]), _NUM_LEARNED + _NUM_ASKED)
    answers = [text[::-1] if is_reversed else text for text in texts]
    source = padded([np.array([BEGIN, *text, END]) for text in texts])  # (B, S)
    arrays = {
        "source": source[:_NUM_LEARNED],
        "tokens": padded([np.array([BEGIN, *answer]) for answer in answers])[:_NUM_LEARNED],
        "targets": padded([np.array([*answer, END]) for answer in answers])[:_NUM_LEARNED],
    }
    expected = padded([np.array(answer) for answer in answers])  # (B, T)
    config = Seq2SeqTransformerConfig(
        num_layers=1, width=_WIDTH, num_heads=4, inner_width=2 * _WIDTH, dropout=0.0
    )
    model = construct(
        lambda: Seq2SeqTransformer(config, _FIRST_LETTER + _NUM_LETTERS),
        source[:1],
        arrays["tokens"][:1],
        seed=seed,
    )

    def check() -> list[Finding]:
        # One token more than the longest: ending is part of the answer.
        said = model.decode(source[_NUM_LEARNED:], _LONGEST + 1).numpy()
        is_right = (said[:, :-1] == expected[_NUM_LEARNED:]).all(axis=1) & (said[:, -1] == 0)
        asked, answer = _spelled(texts[_NUM_LEARNED]), _spelled(answers[_NUM_LEARNED])
        first = _spelled(token for token in said[0] if token)
        return [
            _share("new texts said without a mistake", is_right),
            Finding(f"for example {asked}", answer, first, first == answer),
        ]

    loss = TaskLoss(
        lambda batch: model(batch["source"], batch["tokens"], training=True), language_model_loss
    )
    return Problem(arrays, model, loss, check)


def different_texts(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """`count` texts of which no two are the same, in the order in which they were drawn."""
    texts: dict[tuple[int, ...], None] = {}
    while len(texts) < count:
        length = rng.integers(_SHORTEST, _LONGEST + 1)
        letters = rng.integers(_FIRST_LETTER, _FIRST_LETTER + _NUM_LETTERS, length)
        texts[tuple(letters.tolist())] = None
    return list(texts)


def _spelled(tokens) -> str:
    """Letters from a on; what is none, a mark, as a question mark."""
    return " ".join(
        chr(ord("a") + int(token) - _FIRST_LETTER) if token >= _FIRST_LETTER else "?"
        for token in tokens
    )


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "linear_regression": linear_regression,
    "dense_classifier": dense_classifier,
    "lstm_tagger": lstm_tagger,
    "lstm_classifier": lstm_classifier,
    "copy_transformer": functools.partial(transformer, is_reversed=False),
    "reverse_transformer": functools.partial(transformer, is_reversed=True),
}


# Findings -----------------------------------------------------------------------------------------


def _number(quantity: str, known: float, found: float, tolerance: float) -> Finding:
    return Finding(
        quantity,
        f"{known:.4f} (+-{tolerance:.1g})",
        f"{found:.4f}",
        bool(abs(found - known) <= tolerance),
    )


def _share(quantity: str, is_right: np.ndarray, at_least: float = 1.0) -> Finding:
    return Finding(
        quantity,
        "all" if at_least == 1 else f"{at_least:.0%} or more",
        f"{is_right.sum()} of {is_right.size} ({is_right.mean():.2%})",
        bool(is_right.mean() >= at_least),
    )
