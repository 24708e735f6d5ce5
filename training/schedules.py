"""How a number moves over a run: closed forms in numpy, tabulated once for all of its updates.

An expression names one, with its numbers: `cosine`, `cosine(1, 0.1, warmup=100)`, `linear(8, 64,
steps=300)`, or `32`, which stays. Of a learning rate the values are fractions of the peak; of
anything else (batch size, tokens, dropout, a share) they are the values themselves. Steps are
parameter updates. No TensorFlow: expressions are checked before anything heavy is imported.

Every schedule takes `warmup`, the updates of a line from `warmup_start` to its first value (half of
the run at most, or a short run would never get there), and `steps`, the updates that it takes after
that (the rest of the run unless given); it then stays where it is. Below, u counts updates after
the warm-up and L is `steps`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.expressions import Call, Value, parse_value


@dataclass(frozen=True)
class Number:
    """One number of a schedule, its default and what is allowed."""

    default: float | None
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    is_whole: bool = False
    is_value: bool = False  # that the schedule passes through, in the unit of what it moves

    def expected(self) -> str:
        words = ["a whole number" if self.is_whole else "a number"]
        words += [f"above {self.above:g}"] if self.above > -math.inf else []
        words += [f"of at least {self.least:g}"] if self.least > -math.inf else []
        words += [f"of at most {self.most:g}"] if self.most < math.inf else []
        return " ".join(words) + (", or none" if self.default is None else "")

    def allows(self, value: Value) -> bool:
        if value is None:
            return self.default is None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        is_fitting = value == int(value) or not self.is_whole
        return is_fitting and self.least <= value <= self.most and value > self.above


def _value(default: float, **bounds: Any) -> Number:
    return Number(default, is_value=True, **bounds)


_WARMUP = {"warmup": Number(0, least=0, is_whole=True), "warmup_start": _value(0.0)}
_STEPS = {"steps": Number(None, least=1, is_whole=True)}


@dataclass(frozen=True)
class Schedule:
    """`function(u, L, **own numbers)` -> values; `u` float64 from 0 to `L`, both in updates."""

    function: Callable[..., np.ndarray]
    own: dict[str, Number]  # in the order in which they may be given without their names
    description: str
    source: str

    @property
    def numbers(self) -> dict[str, Number]:
        return self.own | _WARMUP | _STEPS


# Closed forms -------------------------------------------------------------------------------------


def constant(u, L, *, start):
    return np.full_like(u, start)


def step(u, L, *, start, factor, every):
    """start factor^floor(u / every)"""
    every = every or max(math.ceil(L / 3), 1)
    return start * factor ** np.floor(u / every)


def exponential(u, L, *, start, end):
    """start (end / start)^(u / L)"""
    return start * (end / start) ** (u / L)


def linear(u, L, *, start, end):
    return start + (end - start) * (u / L)


def polynomial(u, L, *, start, end, power):
    """end + (start - end) (1 - u / L)^power"""
    return end + (start - end) * (1 - u / L) ** power


def inverse_sqrt(u, L, *, start, timescale, warmup):
    """start sqrt(w / (w + u)): with w the warm-up this is eq. 3 over its highest value."""
    w = timescale or max(warmup, 1)
    return start * np.sqrt(w / (w + u))


def cosine(u, L, *, start, end):
    """end + (start - end) (1 + cos(pi u / L)) / 2"""
    return end + (start - end) * (1 + np.cos(np.pi * u / L)) / 2


def cosine_restarts(u, L, *, start, end, cycles, growth):
    """Whole cycles fill L, each `growth` times as long as the one before."""
    lengths = growth ** np.arange(cycles, dtype=np.float64)
    edges = L * np.cumsum([0.0, *lengths]) / lengths.sum()  # updates
    # An edge that falls on an update must not miss it by rounding: there the next cycle starts.
    cycle = np.searchsorted(edges[1:-1], u + 1e-6, side="right")
    done = (u - edges[cycle]) / (edges[cycle + 1] - edges[cycle])
    return cosine(np.clip(done, 0.0, 1.0), 1.0, start=start, end=end)


def one_cycle(u, L, *, start, peak, end, rise):
    """Up and down again in `rise` L updates each, then to the end in what is left."""
    return np.interp(u / L, [0.0, rise, 2 * rise, 1.0], [start, peak, start, end])


def warmup_stable_decay(u, L, *, start, end, decay):
    """The start, but in the last `decay` L updates a line to the end."""
    return start + (end - start) * np.clip((u / L - (1 - decay)) / decay, 0.0, 1.0)


def slanted_triangular(u, L, *, peak, rise, ratio):
    """From peak / ratio up in `rise` L updates (not rounded down to whole ones) and down again."""
    return peak * np.interp(u / L, [0.0, rise, 1.0], [1 / ratio, 1.0, 1 / ratio])


_START, _END = {"start": _value(1.0)}, {"end": _value(0.0)}
_POSITIVE_ENDS = {"start": _value(1.0, above=0), "end": _value(0.01, above=0)}
_PLATEAU = {
    "factor": Number(0.5, above=0),
    "patience": Number(3, least=1, is_whole=True),
    "min_change": Number(0.0, least=0),
    "least": Number(0.0, least=0),
}

SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(constant, _START, "the start, always", ""),
    "step": Schedule(
        step,
        _START | {"factor": Number(0.1, above=0), "every": Number(None, least=1, is_whole=True)},
        "times factor every so many updates, by default after each third",
        "He et al., 2016 (ResNet)",
    ),
    "exponential": Schedule(
        exponential, _POSITIVE_ENDS, "by the same factor in every update, start to end", ""
    ),
    "linear": Schedule(linear, _START | _END, "a line from start to end", ""),
    "polynomial": Schedule(
        polynomial,
        _START | _END | {"power": Number(2.0, above=0)},
        "a power of the updates left, start to end",
        "Liu et al., 2015 (ParseNet)",
    ),
    "inverse_sqrt": Schedule(
        inverse_sqrt,
        _START | {"timescale": Number(None, above=0)},
        "as 1 / sqrt(update) after the warm-up (Noam); timescale is the warm-up unless given",
        "Vaswani et al., 2017, eq. 3",
    ),
    "cosine": Schedule(
        cosine,
        _START | _END,
        "half a cosine from start to end",
        "Loshchilov & Hutter, 2017 (SGDR), eq. 5",
    ),
    "cosine_restarts": Schedule(
        cosine_restarts,
        _START
        | _END
        | {
            "cycles": Number(3, least=1, most=100, is_whole=True),
            "growth": Number(2.0, least=1, most=100),
        },
        "half cosines that start anew, each growth times as long as the one before",
        "Loshchilov & Hutter, 2017 (SGDR), eq. 5 with T_mult",
    ),
    "one_cycle": Schedule(
        one_cycle,
        {"start": _value(0.1), "peak": _value(1.0)}
        | _END
        | {"rise": Number(0.45, above=0, most=0.5)},
        "a line up to the peak, one down again, and one to the end",
        "Smith, 2018 (1cycle)",
    ),
    "warmup_stable_decay": Schedule(
        warmup_stable_decay,
        _START | _END | {"decay": Number(0.2, above=0, most=1)},
        "the start, then a line to the end over the last part of the run",
        "Hu et al., 2024 (MiniCPM), with a line for the decay",
    ),
    "slanted_triangular": Schedule(
        slanted_triangular,
        {"peak": _value(1.0), "rise": Number(0.1, above=0, most=1), "ratio": Number(32, least=1)},
        "a short line up to the peak from peak / ratio, a long one down",
        "Howard & Ruder, 2018 (ULMFiT), eq. 3",
    ),
    "plateau": Schedule(
        lambda u, L, *, start, **observed: constant(u, L, start=start),
        _START | _PLATEAU,
        "the start, times factor after patience evaluations without a new best",
        "",
    ),
}


# Expressions --------------------------------------------------------------------------------------


def check(
    expression: str | float,
    setting: str = "schedule",
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raises ValueError naming `setting` unless `expression` is a schedule with fitting numbers.

    `least` and `most` bound the values that the expression names (start, end, peak, and
    warmup_start if there is a warm-up), not those that a factor may lead to.
    """
    name, numbers = _read(expression, setting)
    for key, number in SCHEDULES[name].numbers.items():
        is_reached = number.is_value and (key != "warmup_start" or numbers["warmup"])
        if is_reached and not least <= numbers[key] <= most:
            raise ValueError(
                f"{setting} must stay from {least:g} to {most:g}. "
                f"Received: {key}={numbers[key]:g} in {str(expression)!r}"
            )


def tabulate(expression: str | float, num_updates: int, setting: str = "schedule") -> np.ndarray:
    """The values before each update and after the last, float64 (num_updates + 1,).

    The value at update t is entry min(t, num_updates). Raises ValueError as `check` does, and when
    a value is too large for a float.
    """
    if num_updates < 1:
        raise ValueError(f"{setting} needs 1 update or more. Received: {num_updates=}")
    name, numbers = _read(expression, setting)
    warmup = int(min(numbers["warmup"], _longest_warmup(num_updates)))
    length = float(numbers["steps"] or num_updates - warmup)
    t = np.arange(num_updates + 1, dtype=np.float64)
    own = {key: numbers[key] for key in SCHEDULES[name].own}
    if name == "inverse_sqrt":
        own["warmup"] = warmup
    with np.errstate(over="ignore"):
        values = SCHEDULES[name].function(np.clip(t - warmup, 0.0, length), length, **own)
        # Up to there the values are the first one.
        share = t[:warmup] / max(warmup, 1)
        values[:warmup] = numbers["warmup_start"] * (1 - share) + values[:warmup] * share
    if not np.isfinite(values).all():
        first = int(np.argmin(np.isfinite(values)))
        raise ValueError(
            f"{setting} is not finite any more at update {first}. Received: {str(expression)!r}"
        )
    return values


def _longest_warmup(num_updates: int) -> int:
    return num_updates // 2


def cut_warmup(expression: str | float, num_updates: int, setting: str = "schedule") -> str | None:
    """What becomes of a warm-up that is longer than half of the run, in words; None of others."""
    _, numbers = _read(expression, setting)
    asked, longest = int(numbers["warmup"]), _longest_warmup(num_updates)
    if asked <= longest:
        return None
    return (
        f"the warm-up of {setting}={expression} takes {longest} updates in place of {asked}: half "
        f"of the run's {num_updates}"
    )


def _read(expression: str | float, setting: str) -> tuple[str, dict[str, Any]]:
    """The schedule's name and all of its numbers, defaults filled in."""
    value = parse_value(str(expression), setting)
    call = value if isinstance(value, Call) else Call("constant", (value,))
    if call.name not in SCHEDULES:
        raise ValueError(
            f"{setting} must be a number or one of {', '.join(SCHEDULES)}."
            f"{_close(call.name, SCHEDULES)} Received: {str(expression)!r}"
        )
    known = SCHEDULES[call.name].numbers
    if len(call.arguments) > len(known):
        raise ValueError(
            f"{setting}: {call.name} takes {', '.join(known)}, {len(known)} numbers. "
            f"Received: {len(call.arguments)} in {str(expression)!r}"
        )
    given = dict(zip(known, call.arguments, strict=False))
    for key, argument in call.keywords.items():
        if key not in known:
            raise ValueError(
                f"{setting}: {call.name} takes {', '.join(known)}.{_close(key, known)} "
                f"Received: {key!r} in {str(expression)!r}"
            )
        if key in given:
            raise ValueError(
                f"{setting}: {call.name} takes {key} once. Received: {str(expression)!r}"
            )
        given[key] = argument
    for key, argument in given.items():
        if not known[key].allows(argument):
            raise ValueError(
                f"{setting}: {key} of {call.name} must be {known[key].expected()}. "
                f"Received: {argument} in {str(expression)!r}"
            )
    return call.name, {key: number.default for key, number in known.items()} | given


def _close(name: str, known: dict) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


# What validation decides --------------------------------------------------------------------------


@dataclass
class Plateau:
    """A factor on the values of `plateau`, lowered when the score stops growing.

    After `patience` evaluations in a row whose score is not above the best by more than
    `min_change`, the multiplier is taken times `factor` (never below `least`) and the count starts
    anew, as in `keras.callbacks.ReduceLROnPlateau`. The last three fields are its whole state,
    plain numbers to save and set.
    """

    factor: float
    patience: int  # evaluations
    min_change: float = 0.0
    least: float = 0.0
    multiplier: float = 1.0
    num_stale: int = 0  # evaluations since the best, or since the last reduction
    best: float = -math.inf

    @classmethod
    def from_expression(cls, expression: str, setting: str = "schedule") -> Plateau | None:
        """With the numbers of a `plateau(...)`; None for any other schedule."""
        name, numbers = _read(expression, setting)
        if name != "plateau":
            return None
        numbers["patience"] = int(numbers["patience"])
        return cls(**{key: numbers[key] for key in _PLATEAU})

    def observe(self, score: float) -> float:
        """Takes note of a validation score, more is better; returns the multiplier from now on."""
        if score > self.best + self.min_change:
            self.best, self.num_stale = score, 0
            return self.multiplier
        self.num_stale += 1
        if self.num_stale >= self.patience:
            self.multiplier = max(self.multiplier * self.factor, self.least)
            self.num_stale = 0
        return self.multiplier
