"""The table of optimizers and strategies, and what may stand inside what. No TensorFlow.

A strategy is written as a nested expression, outermost first, with an optimizer inside:
`lookahead(sam(accumulate(adamw, 4)), k=5)`. Every part wraps exactly one other, so an expression is
a chain; `resolve` checks it and fills in the numbers that were left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from training.expressions import Call, parse

# From the outside in. A part may hold parts of its own level and of later ones.
AVERAGE, ACROSS, GRADIENT, LOSS, OPTIMIZER = range(5)
LEVEL_NAMES = {
    AVERAGE: "averages the weights",
    ACROSS: "acts across updates",
    GRADIENT: "makes the gradient of one update",
    LOSS: "changes the loss",
    OPTIMIZER: "is an optimizer",
}


@dataclass(frozen=True)
class Number:
    """A number of a part: its default and its bounds, low <= value <= high."""

    default: float
    low: float = 0.0
    high: float = math.inf
    whole: bool = False

    def check(self, name: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and self.whole:
            is_number = float(value).is_integer()  # type: ignore[arg-type]
        if not is_number or not self.low <= value <= self.high:  # type: ignore[operator]
            kind = "a whole number" if self.whole else "a number"
            limit = "" if self.high == math.inf else f" and at most {self.high:g}"
            raise ValueError(
                f"{name} must be {kind} of at least {self.low:g}{limit}. Received: {value!r}"
            )
        return int(value) if self.whole else float(value)  # type: ignore[call-overload, arg-type]


def _count(default: int, low: int = 1) -> Number:
    return Number(default, low, whole=True)


def _fraction(default: float) -> Number:
    return Number(default, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A line of the table: what it is called, where it belongs, what it does and who says so."""

    name: str
    level: int
    summary: str
    formula: str
    source: str
    numbers: dict[str, Number] = field(default_factory=dict)


_BETAS = {"beta_1": Number(0.9, 0.0, 0.9999), "beta_2": Number(0.999, 0.0, 0.99999)}

_TABLE = (
    # Optimizers: one gradient in, one change of the weights out -----------------------------------
    Part(
        name="sgd",
        level=OPTIMIZER,
        summary="stochastic gradient descent",
        formula="w <- w - lr g",
        source="Robbins & Monro, 1951",
    ),
    Part(
        name="momentum",
        level=OPTIMIZER,
        summary="SGD with Polyak's momentum",
        formula="v <- m v - lr g; w <- w + v",
        source="Polyak, 1964",
        numbers={"momentum": Number(0.9, 0.0, 0.9999)},
    ),
    Part(
        name="nesterov",
        level=OPTIMIZER,
        summary="SGD with Nesterov's momentum",
        formula="v <- m v - lr g; w <- w + m v - lr g",
        source="Nesterov, 1983; Sutskever et al., 2013, eq. 3-4",
        numbers={"momentum": Number(0.9, 0.0, 0.9999)},
    ),
    Part(
        name="rmsprop",
        level=OPTIMIZER,
        summary="gradient over the root of its mean square",
        formula="s <- r s + (1-r) g^2; w <- w - lr g / sqrt(s + eps)",
        source="Hinton, 2012, lecture 6e",
        numbers={"rho": Number(0.9, 0.0, 0.9999)},
    ),
    Part(
        name="adam",
        level=OPTIMIZER,
        summary="bias-corrected first and second moments; rows of an embedding move only when used",
        formula="m, v <- moments; w <- w - lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps)",
        source="Kingma & Ba, 2015, end of sec. 2",
        numbers=_BETAS,
    ),
    Part(
        name="adamw",
        level=OPTIMIZER,
        summary="Adam; the customary name with optimizer.weight_decay, which is always decoupled",
        formula="w <- w (1 - lr wd); then Adam",
        source="Loshchilov & Hutter, 2019, alg. 2",
        numbers=_BETAS,
    ),
    Part(
        name="lion",
        level=OPTIMIZER,
        summary="the sign of a momentum, by used rows; wants a rate 3 to 10 times below Adam's",
        formula="w <- w - lr sign(b1 m + (1-b1) g); m <- b2 m + (1-b2) g",
        source="Chen et al., 2023, alg. 2",
        numbers={"beta_1": Number(0.9, 0.0, 0.9999), "beta_2": Number(0.99, 0.0, 0.99999)},
    ),
    Part(
        name="adafactor",
        level=OPTIMIZER,
        summary="second moments by row and column means; a rate relative to the weights",
        formula="V ~ R C / mean(R); u = g / sqrt(V) / max(1, RMS); w <- w - lr RMS(w) u",
        source="Shazeer & Stern, 2018, alg. 4",
    ),
    Part(
        name="lamb",
        level=OPTIMIZER,
        summary="Adam's step, scaled layer by layer to the norm of the weights",
        formula="u = m^ / (sqrt(v^) + eps) + wd w; w <- w - lr |w| / |u| u",
        source="You et al., 2020, alg. 2",
        numbers=_BETAS,
    ),
    Part(
        name="muon",
        level=OPTIMIZER,
        summary="orthogonalised momentum for matrices, AdamW for the rest (the log says which)",
        formula="m <- mu m + g; W <- W - lr sqrt(max(1, out/in)) NewtonSchulz5(g + mu m)",
        source="Jordan et al., 2024",
        numbers={
            "momentum": Number(0.95, 0.0, 0.9999),
            "adamw_rate": Number(0.15, 0.0, 100.0),  # of AdamW over that of the matrices
        },
    ),
    Part(
        name="schedule_free_sgd",
        level=OPTIMIZER,
        summary="SGD at an interpolation of iterates and their average; evaluates the average",
        formula="y = (1-b) z + b x; z <- z - lr (g(y) + wd y); x <- (1-c) x + c z, "
        "c = max_lr^2 / sum max_lr^2",
        source="Defazio et al., 2024, eq. 4-6",
        numbers={"beta": Number(0.9, 0.0, 0.9999)},
    ),
    Part(
        name="schedule_free_adamw",
        level=OPTIMIZER,
        summary="Schedule-Free with Adam's second moment; evaluates the average",
        formula="as schedule_free_sgd, z <- z - lr (g / (sqrt(v^) + eps) + wd y)",
        source="Defazio et al., 2024, alg. 1",
        numbers=_BETAS,
    ),
    # The loss -------------------------------------------------------------------------------------
    Part(
        name="r_drop",
        level=LOSS,
        summary="two passes with other dropout masks, drawn together",
        formula="mean of both losses + alpha/2 (KL(p|q) + KL(q|p)) / 2",
        source="Liang et al., 2021, eq. 3-4",
        numbers={"alpha": Number(1.0)},
    ),
    # Inside one update: several forward and backward passes make one gradient --------------------
    Part(
        name="accumulate",
        level=GRADIENT,
        summary="one gradient from k batches, weighted by their targets",
        formula="g = sum_j n_j g_j / sum_j n_j",
        source="see Ott et al., 2018, sec. 3.3",
        numbers={"k": _count(4)},
    ),
    Part(
        name="truncate",
        level=GRADIENT,
        summary="back-propagation through time cut every so many tokens, the state carried on",
        formula="g = sum over chunks, state detached between them",
        source="Williams & Peng, 1990",
        numbers={"window": _count(32)},
    ),
    Part(
        name="sam",
        level=GRADIENT,
        summary="the gradient at the worst point nearby; costs two gradients",
        formula="g(w + rho g / |g|)",
        source="Foret et al., 2021, eq. 2-3",
        numbers={"rho": Number(0.05)},
    ),
    Part(
        name="extragradient",
        level=GRADIENT,
        summary="the gradient after a look-ahead step of plain descent; costs two gradients",
        formula="g(w - rate g(w))",
        source="Korpelevich, 1976",
        numbers={"rate": Number(0.01)},
    ),
    Part(
        name="fgm",
        level=GRADIENT,
        summary="adds the gradient under an adversarial change of the embeddings",
        formula="g(w) + g(E + eps dE / |dE|)",
        source="Miyato et al., 2017, eq. 3-5",
        numbers={"epsilon": Number(1.0)},
    ),
    Part(
        name="dp_sgd",
        level=GRADIENT,
        summary="differential privacy: each example's gradient clipped, noise added to their sum",
        formula="(sum_i g_i min(1, C/|g_i|) + N(0, (sigma C)^2)) / B",
        source="Abadi et al., 2016, alg. 1",
        numbers={"clip": Number(1.0, 1e-12), "noise": Number(1.0)},
    ),
    Part(
        name="l1",
        level=GRADIENT,
        summary="an L1 penalty on the weights, part of the gradient",
        formula="g + c sign(w)",
        source="Tibshirani, 1996",
        numbers={"c": Number(1e-5)},
    ),
    Part(
        name="l2",
        level=GRADIENT,
        summary="an L2 penalty on the weights, part of the gradient (not decoupled decay)",
        formula="g + c w",
        source="Hoerl & Kennard, 1970",
        numbers={"c": Number(1e-4)},
    ),
    Part(
        name="gradient_noise",
        level=GRADIENT,
        summary="Gaussian noise on the gradient that dies away",
        formula="g + N(0, eta / (1 + t)^gamma)",
        source="Neelakantan et al., 2015, eq. 1",
        numbers={"eta": Number(0.01), "gamma": Number(0.55)},
    ),
    Part(
        name="loss_scale",
        level=GRADIENT,
        summary="the loss scaled up for float16; an update that overflows is skipped whole",
        formula="g = grad(S loss) / S; S halves on overflow, doubles after n good updates",
        source="Micikevicius et al., 2018, sec. 3.2",
        numbers={"initial": Number(2.0**15, 1.0), "growth_updates": _count(2000)},
    ),
    # Across updates -------------------------------------------------------------------------------
    Part(
        name="lookahead",
        level=ACROSS,
        summary="slow weights that follow the fast ones every k updates; evaluates the slow ones",
        formula="every k: slow <- slow + alpha (fast - slow); fast <- slow",
        source="Zhang et al., 2019, alg. 1",
        numbers={"k": _count(5), "alpha": _fraction(0.5)},
    ),
    Part(
        name="local_sgd",
        level=ACROSS,
        summary="N workers take H updates each on their own batches, then average",
        formula="every H: w <- mean over workers",
        source="McMahan et al., 2017; Stich, 2019",
        numbers={"workers": _count(2), "steps": _count(8)},
    ),
    Part(
        name="diloco",
        level=ACROSS,
        summary="Local SGD with an outer Nesterov step on the mean change",
        formula="every H: d = w0 - mean_i w_i; outer Nesterov SGD on d",
        source="Douillard et al., 2023, alg. 1",
        numbers={
            "workers": _count(2),
            "steps": _count(20),
            "rate": Number(0.7, 0.0, 10.0),
            "momentum": Number(0.9, 0.0, 0.9999),
        },
    ),
    Part(
        name="reptile",
        level=ACROSS,
        summary="a step towards where k updates on one task after another lead",
        formula="every k: w <- w + rate (w_k - w); one task a cycle, inner state new each time",
        source="Nichol et al., 2018, alg. 1",
        numbers={"k": _count(5), "rate": _fraction(0.5)},
    ),
    # Averages of the weights: they watch, and are what is evaluated and exported --------------
    Part(
        name="ema",
        level=AVERAGE,
        summary="exponential moving average of the weights, once an update",
        formula="e <- b e + (1-b) w, over its start's bias",
        source="Polyak & Juditsky, 1992; Kingma & Ba, 2015, sec. 7.2",
        numbers={"beta": Number(0.99, 0.0, 0.99999)},
    ),
    Part(
        name="swa",
        level=AVERAGE,
        summary="plain mean of the weights of every so many updates, from a share of the run on",
        formula="a <- a + (w - a) / n",
        source="Izmailov et al., 2018, alg. 1",
        numbers={"start": _fraction(0.75), "every": _count(1)},
    ),
)

PARTS: dict[str, Part] = {part.name: part for part in _TABLE}
OPTIMIZERS = {name: part for name, part in PARTS.items() if part.level == OPTIMIZER}
STRATEGIES = {name: part for name, part in PARTS.items() if part.level != OPTIMIZER}
SCHEDULE_FREE = ("schedule_free_sgd", "schedule_free_adamw")
WITH_WORKERS = ("local_sgd", "diloco")

# These run the rule inside them more than once for one gradient, or on pieces of a batch.
_SEVERAL_PASSES = ("accumulate", "truncate", "sam", "extragradient", "fgm")

# Orders that the levels alone would allow: (outer, inner) -> why not.
_REFUSED: dict[tuple[str, str], str] = {
    ("accumulate", "accumulate"): "one window inside another is one window; multiply the numbers",
    ("truncate", "accumulate"): "the chunks belong to one batch; write accumulate(truncate(...))",
    ("truncate", "truncate"): "chunks cannot be cut into chunks; give the smaller window",
    ("truncate", "r_drop"): "its two passes would need two carried states; use one of them",
    ("gradient_noise", "loss_scale"): "an update that is skipped draws no noise; write "
    "loss_scale(gradient_noise(...))",
} | {
    ("truncate", inner): f"the chunks belong to one gradient; write {inner}(truncate(...))"
    for inner in ("sam", "extragradient", "fgm")
}
_AROUND_DP = "the privacy accounting covers one noisy gradient of each update and nothing around it"
_AROUND_SCHEDULE_FREE = (
    "Schedule-Free keeps its own average and moves the weights between it and its iterates; a "
    "second hand on them breaks both"
)
_TWO_ACROSS = (
    "both keep weights of earlier updates and go back to them, and neither would know where the "
    "other went; use one of them"
)
_SAME_NOISE = (
    "its noise follows from the seed and the number of the update, so all workers would draw the "
    "same and their mean would not lessen it"
)


@dataclass(frozen=True)
class Link:
    """One part of a chain with all of its numbers."""

    part: Part
    numbers: dict[str, float]

    @property
    def name(self) -> str:
        return self.part.name


def resolve(expression: str, setting: str = "strategy") -> list[Link]:
    """The chain behind `expression`, outermost first and the optimizer last.

    Raises ValueError for unknown names and numbers, and for an order that makes no sense, with
    the reason.
    """
    chain: list[Link] = []
    call: Call | None = parse(expression, setting)
    while call is not None:
        call = _link(call, chain, setting)
    for outer, inner in zip(chain, chain[1:], strict=False):
        if inner.part.level < outer.part.level:
            raise ValueError(
                f"{setting}={expression}: {inner.name} {LEVEL_NAMES[inner.part.level]} and cannot "
                f"stand inside {outer.name}, which {LEVEL_NAMES[outer.part.level]}. Turn them "
                f"around: {inner.name}({outer.name}(...))."
            )
    for i, outer in enumerate(chain):
        for inner in chain[i + 1 :]:
            if reason := _refusal(outer.part, inner.part):
                raise ValueError(
                    f"{setting}={expression}: {outer.name} cannot stand around {inner.name}: "
                    f"{reason}."
                )
    return chain


def num_workers(expression: str, setting: str = "strategy") -> int | None:
    """How many workers `expression` has, each of which may be a process; None without such a part.

    >>> num_workers("ema(diloco(adamw, 4))")
    4
    """
    return _of_workers(expression, setting, "workers")


def updates_between_meetings(expression: str, setting: str = "strategy") -> int | None:
    """After how many updates the workers of `expression` meet; None without such a part.

    >>> updates_between_meetings("ema(diloco(adamw, 4))")
    20
    """
    return _of_workers(expression, setting, "steps")


def _of_workers(expression: str, setting: str, number: str) -> int | None:
    for link in resolve(expression, setting):
        if link.name in WITH_WORKERS:
            return int(link.numbers[number])
    return None


def canonical(expression: str, setting: str = "strategy") -> str:
    """`expression` with every number written out, so that equal strategies have equal names."""
    return _text(resolve(expression, setting))


def nest(parts: list[tuple[str, tuple]], optimizer: str) -> str:
    """The expression of `parts`, (name, numbers) outermost first, around `optimizer`."""
    text = optimizer
    for name, numbers in reversed(parts):
        text = f"{name}({', '.join([text, *map(_spelled, numbers)])})"
    return text


def _spelled(number: float) -> str:
    """As short as can be without becoming another number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _text(chain: list[Link]) -> str:
    text = ""
    for link in reversed(chain):
        numbers = [f"{name}={_spelled(value)}" for name, value in link.numbers.items()]
        inside = ", ".join(([text] if text else []) + numbers)
        text = f"{link.name}({inside})" if inside else link.name
    return text


def _link(call: Call, chain: list[Link], setting: str) -> Call | None:
    """Appends the part that `call` names to `chain`; returns the call inside it."""
    if call.name not in PARTS:
        raise ValueError(
            f"{setting}: unknown part {call.name!r}. Optimizers: {', '.join(OPTIMIZERS)}. "
            f"Strategies around one: {', '.join(STRATEGIES)}."
        )
    part, arguments = PARTS[call.name], list(call.arguments)
    inner: Call | None = None
    if part.level != OPTIMIZER:
        if not arguments or not isinstance(arguments[0], Call):
            raise ValueError(
                f"{setting}: {part.name} goes around an optimizer or another part, for example "
                f"{part.name}(adamw). Received: {call}"
            )
        inner = arguments.pop(0)
    names = list(part.numbers)
    if len(arguments) > len(names):
        raise ValueError(
            f"{setting}: {part.name} takes {', '.join(names) or 'no numbers'}. Received: {call}"
        )
    given = dict(zip(names, arguments, strict=False))
    for name, value in dict(call.keywords).items():
        if name not in part.numbers or name in given:
            raise ValueError(
                f"{setting}: {part.name} has no further number {name!r}; it takes "
                f"{', '.join(names) or 'none'}. Received: {call}"
            )
        given[name] = value
    numbers = {
        name: number.check(f"{setting}: {part.name}'s {name}", given.get(name, number.default))
        for name, number in part.numbers.items()
    }
    chain.append(Link(part, numbers))
    return inner


def _refusal(outer: Part, inner: Part) -> str | None:
    """Why `outer` may not stand somewhere around `inner`; None if it may."""
    if (outer.name, inner.name) in _REFUSED:
        return _REFUSED[outer.name, inner.name]
    if outer.level == AVERAGE and inner.level == AVERAGE:
        return "only one average can be evaluated and exported"
    if inner.name in SCHEDULE_FREE and outer.level in (AVERAGE, ACROSS):
        return _AROUND_SCHEDULE_FREE
    if outer.level == ACROSS and inner.level == ACROSS:
        return _TWO_ACROSS
    if outer.name in WITH_WORKERS and inner.name in ("dp_sgd", "gradient_noise"):
        return _SAME_NOISE
    if "dp_sgd" in (outer.name, inner.name) and outer.level == inner.level == GRADIENT:
        return _AROUND_DP
    if outer.name == "dp_sgd" and inner.level == LOSS:
        return _AROUND_DP
    if outer.name in _SEVERAL_PASSES and inner.name == "loss_scale":
        return (
            "an overflow has to skip the whole update, and one scale holds for all of its passes; "
            f"write loss_scale({outer.name}(...))"
        )
    if outer.name in _SEVERAL_PASSES and inner.name == "gradient_noise":
        return f"the noise is drawn once an update; write gradient_noise({outer.name}(...))"
    if outer.name == inner.name:
        return "one is enough; give it the numbers that you mean"
    return None


def batches_per_update(chain: list[Link]) -> int:
    """How many micro-batches one update of the chain reads."""
    count = 1
    for link in chain:
        if link.name == "accumulate":
            count *= int(link.numbers["k"])
        elif link.name in WITH_WORKERS:
            count *= int(link.numbers["workers"])
    return count


def with_full_batches(expression: str, num_pieces: int) -> str:
    """`expression` with the gradient of `num_pieces` batches in place of that of one.

    Raises ValueError, naming `batch_size`, for a part that cannot stand around so many.
    """
    chain = resolve(expression)
    if num_pieces == 1:
        return expression
    inside = [link for link in chain if link.part.level >= LOSS]
    window = Link(PARTS["accumulate"], {"k": num_pieces})
    for link in chain[: len(chain) - len(inside)]:
        if _refusal(link.part, window.part):
            raise ValueError(
                f"batch_size=full reads the training split in {num_pieces} pieces whose gradients "
                f"are added up, and {link.name} cannot stand around such a sum. Set batch_size to "
                f"a number, or leave {link.name} out. Received: strategy={expression}"
            )
    return _text([*chain[: len(chain) - len(inside)], window, *inside])
