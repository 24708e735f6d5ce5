"""The same recipe trained by several strategies, seed by seed, at the same budget.

A comparison is a folder: `plan.json` (what is compared, how long an update takes), `records/`
(one JSON file per strategy and seed), `runs/` (their run folders), and the report. The same
command finds the same folder, reuses what is done and goes on with the rest; strategies and
seeds may be added later.

A record is what is known of one run, in plain JSON:

    strategy, label, seed     the strategy in full; as the user typed it; the run's seed
    ended                     "finished", "early", "diverged" or "interrupted"
    updates, gradient_evaluations, seconds     what the run cost; seconds without evaluation
    score_name, higher_is_better, score        the number that is compared
    curve                     [{"updates", "gradient_evaluations", "seconds", "loss",
                              "validation_loss", ...}, ...], one for each evaluation
    initial_weights           digest of the weights before the first update
    test, message             figures on the test split; why it diverged
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.expressions import parse_short, parse_value
from training.report import Comparison
from training.runs import read_json, write_json
from training.strategies.catalogue import OPTIMIZERS, SCHEDULE_FREE, canonical, nest, resolve

logger = logging.getLogger(__name__)

Record = dict[str, Any]
PLAN_FILE = "plan.json"
FINISHED, DIVERGED, INTERRUPTED = "finished", "diverged", "interrupted"


@dataclass(frozen=True)
class Budget:
    """What every run may spend: an `amount` of `unit`."""

    amount: float
    unit: str  # s, updates or evaluations

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    def in_words(self) -> str:
        if self.unit == "updates":
            return f"{self.amount:,g} updates each."
        if self.unit == "evaluations":
            return f"{self.amount:,g} gradient evaluations each."
        return (
            f"{self.amount:,g} seconds of training each, in as many updates as a timing of each "
            "strategy beforehand gave."
        )


@dataclass(frozen=True)
class Cost:
    """Of one update after compilation."""

    seconds: float
    gradient_evaluations: int


@dataclass(frozen=True)
class Entry:
    """One strategy: as typed, in full, and the configuration of a run by it.

    `strategy` ends in @RATE where the rate is not the recipe's: other rates are other runs.
    """

    label: str
    strategy: str
    config: Any


@dataclass(frozen=True)
class Outcome:
    records: list[Record]  # of the runs that are done, in the order of their turns
    num_expected: int
    is_interrupted: bool


Train = Callable[[Any, int, int, Path], Record]  # (config, seed, updates, folder)
Calibrate = Callable[[Any], Cost]


def parse_budget(text: str) -> Budget:
    """Reads "60s", "2000updates" or "4000evaluations".

    >>> parse_budget("60s")
    Budget(amount=60.0, unit='s')
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|updates?|evaluations?)\s*", text)
    amount = float(match[1]) if match else 0.0
    unit = "s" if match and match[2] == "s" else match[2].rstrip("s") + "s" if match else ""
    if not amount or (unit != "s" and amount != int(amount)):
        raise ValueError(
            "--budget takes seconds, updates or gradient evaluations above 0, for example 60s, "
            f"2000updates or 4000evaluations. Received: {text!r}"
        )
    return Budget(amount, unit)


def split_strategies(text: str) -> list[str]:
    """The entries of a list, cut at commas outside brackets.

    >>> split_strategies("adamw, lookahead(sam(adamw), k=5),sam")
    ['adamw', 'lookahead(sam(adamw), k=5)', 'sam']
    """
    entries = [entry.strip() for entry in split_outside_brackets(text, ",")]
    if not all(entries):
        raise ValueError(
            "--strategies takes names with commas between them, for example adamw,lookahead:5. "
            f"Received: {text!r}"
        )
    repeated = sorted({entry for entry in entries if entries.count(entry) > 1})
    if repeated:
        raise ValueError(f"--strategies names {', '.join(repeated)} more than once.")
    return entries


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """`text` cut at each `separator` that is not inside round brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def strategy_of(label: str, optimizer: str) -> str:
    """The whole expression behind what the user typed, every number written out.

    Short forms end in an optimizer of their own or stand around `optimizer`, the recipe's.

    >>> strategy_of("lookahead:5+sam", "momentum(0.8)")
    'lookahead(sam(momentum(momentum=0.8), rho=0.05), k=5, alpha=0.5)'
    """
    if "(" in label:
        return canonical(label, "--strategies")
    parts = parse_short(label, "--strategies")
    if parts[-1][0] in OPTIMIZERS:
        name, numbers = parts.pop()
        optimizer = f"{name}({', '.join(map(str, numbers))})" if numbers else name
    return canonical(nest(parts, optimizer), "--strategies")


def split_rate(label: str) -> tuple[str, float | None]:
    """The strategy in what the user typed, and its peak learning rate if it has one of its own.

    >>> split_rate("lookahead:5+muon@0.02")
    ('lookahead:5+muon', 0.02)
    """
    name, separator, text = label.partition("@")
    if not separator:
        return name.strip(), None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise ValueError(
            f"--strategies takes NAME@RATE with a rate above 0, such as muon@0.02. "
            f"Received: {label!r}"
        )
    return name.strip(), rate


def innermost(expression: str) -> str:
    """The optimizer inside a strategy, with its numbers.

    >>> innermost("lookahead(sam(momentum(0.8)), k=5)")
    'momentum(momentum=0.8)'
    """
    link = resolve(expression)[-1]
    numbers = ", ".join(f"{name}={value:.12g}" for name, value in link.numbers.items())
    return f"{link.name}({numbers})" if numbers else link.name


def entries_of(text: str, config: RunConfig) -> list[Entry]:
    """What `--strategies` names, each with the run's configuration by it.

    `NAME@RATE` sets the peak learning rate, as what suits one optimizer is wrong for another;
    Schedule-Free ones take the recipe's warm-up and then a constant rate. The strategy is that of
    the run's last stage; those before it stay as the recipe has them.
    """
    return [_entry(label, config) for label in split_strategies(text)]


def _entry(label: str, config: RunConfig) -> Entry:
    name, rate = split_rate(label)
    strategy = strategy_of(name, innermost(config.strategy))
    optimizer = config.optimizer
    if rate is not None:
        optimizer = replace(optimizer, peak_learning_rate=rate)
    if resolve(strategy)[-1].name in SCHEDULE_FREE:
        warmup = dict(getattr(parse_value(optimizer.schedule), "keywords", {})).get("warmup", 0)
        optimizer = replace(optimizer, schedule=f"constant(warmup={warmup})")
    changed = replace(config, strategy=strategy, optimizer=optimizer)
    if optimizer.peak_learning_rate != config.optimizer.peak_learning_rate:
        strategy += f"@{optimizer.peak_learning_rate!r}"
    return Entry(label, strategy, changed)


def updates_for(budget: Budget, cost: Cost) -> int:
    """Parameter updates that the budget pays for, at least one."""
    if budget.unit == "updates":
        return int(budget.amount)
    each = cost.seconds if budget.unit == "s" else cost.gradient_evaluations
    return max(1, math.floor(budget.amount / each + 1e-9))


def compare_recipe(
    name: str,
    config: RunConfig,
    *,
    data: str,
    strategies: str,
    budget: str,
    num_seeds: int,
    output: Path | None,
    train: Train,
    calibrate: Calibrate,
    loss_unit: str = "nats",
) -> tuple[Comparison, Path, bool]:
    """All of `compare RECIPE`: what to report, in which folder, and whether it was interrupted.

    `config` is the recipe with the user's settings, `data` the fingerprint of its data;
    `strategies` and `budget` are as typed.
    """
    entries, spend = entries_of(strategies, config), parse_budget(budget)
    settings = {k: v for k, v in config.to_dict().items() if k not in ("strategy", "seed")}
    identity = {"recipe": name, "settings": settings, "data": data}
    folder = output or comparison_folder(Path("comparisons"), name, identity, spend)
    outcome = run_comparison(
        entries,
        folder=folder,
        identity=identity,
        budget=spend,
        seeds=range(num_seeds),
        train=train,
        calibrate=calibrate,
    )
    what = "strategy" if len(entries) == 1 else "strategies"
    comparison = Comparison(
        title=f"{name}: {len(entries)} {what}, {num_seeds} seed{'s' * (num_seeds > 1)}",
        labels=[entry.label for entry in entries],
        records=outcome.records,
        num_expected=outcome.num_expected,
        budget=spend.in_words(),
        keep=config.keep,
        loss_unit=loss_unit,
        facts=facts(outcome.records, spend),
        settings={
            **{f"strategy {entry.label}": entry.strategy for entry in entries},
            **_flat(settings),
        },
    )
    return comparison, folder, outcome.is_interrupted


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their full names, values as text."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def comparison_folder(parent: Path, name: str, identity: dict[str, Any], budget: Budget) -> Path:
    """Where the comparison of these settings lives when the user names no folder."""
    return parent / f"{name}-{_digest([identity, str(budget)])}"


def run_comparison(
    entries: Sequence[Entry],
    *,
    folder: Path,
    identity: dict[str, Any],
    budget: Budget,
    seeds: Sequence[int],
    train: Train,
    calibrate: Calibrate,
) -> Outcome:
    """Trains every entry with every seed, save for those whose record is there already.

    `identity` is all that must be equal for records to be comparable (recipe, settings,
    fingerprint of the data); a folder that holds another one raises ValueError. Seeds are the
    outer loop and the first strategy rotates, so that a machine that slows down or warms up
    does so for all alike. A FloatingPointError is that run's record, not the end of the others.
    Stops at the first run that was interrupted; its own checkpoints let it go on next time.
    """
    same: dict[str, str] = {}
    for entry in entries:
        if entry.strategy in same:
            raise ValueError(
                f"--strategies: {same[entry.strategy]} and {entry.label} are the same strategy, "
                f"{entry.strategy}. Leave one of them out."
            )
        same[entry.strategy] = entry.label
    plan = _begin(folder, identity, budget)
    updates = {e.strategy: _planned_updates(e, plan, folder, budget, calibrate) for e in entries}
    turns = in_turn(entries, seeds)
    paths = [folder / "records" / f"{_stem(e.strategy)}-seed{seed}.json" for e, seed in turns]
    is_interrupted = False
    for number, ((entry, seed), path) in enumerate(zip(turns, paths, strict=True), 1):
        if path.is_file():
            continue
        where = f"{number} of {len(turns)}: {entry.label}, seed {seed}"
        planned = updates[entry.strategy]
        logger.info(f"{where}, {f'{planned:,} updates' if planned else 'diverged when timed'}.")
        run = folder / "runs" / path.stem
        record = _train(entry, seed, planned, run, train, plan)
        if record["ended"] == INTERRUPTED:
            is_interrupted = True
            break
        write_json(path, record)
        for checkpoints in run.glob("*/checkpoints"):  # many times what all the rest takes
            shutil.rmtree(checkpoints)
        logger.info(_summary(where, record))
    records = [
        read_json(path) | {"label": entry.label}  # as typed this time
        for (entry, _), path in zip(turns, paths, strict=True)
        if path.is_file()
    ]
    return Outcome(records, len(turns), is_interrupted)


def in_turn(entries: Sequence[Entry], seeds: Sequence[int]) -> list[tuple[Entry, int]]:
    """Every entry with every seed: seed by seed, each seed beginning with the next entry."""
    turns = []
    for number, seed in enumerate(seeds):
        first = number % len(entries)
        turns += [(entry, seed) for entry in (*entries[first:], *entries[:first])]
    return turns


def facts(records: Sequence[Record], budget: Budget) -> list[str]:
    """What must be equal for a fair comparison, in sentences, and whether it was."""
    sentences = [*_about_initial_weights(records)]
    ended = [record for record in records if record["ended"] != DIVERGED]
    if budget.unit == "s" and ended:
        seconds = [record["seconds"] for record in ended]
        sentences.append(
            f"Wall time asked for: {budget.amount:,g} s. Taken: {min(seconds):,.1f} to "
            f"{max(seconds):,.1f} s. Strategies are equal in wall time as far as this range."
        )
    early = [f"{r['label']} (seed {r['seed']})" for r in records if r["ended"] == "early"]
    if early:
        sentences.append(f"Stopped early, before the budget was spent: {', '.join(early)}.")
    return sentences


def _about_initial_weights(records: Sequence[Record]) -> list[str]:
    sentences, equal = [], []
    for seed in sorted({record["seed"] for record in records}):
        digests: dict[str, list[str]] = {}
        for record in records:
            # Strategies that diverge while they are timed never drew weights.
            if record["seed"] == seed and record.get("initial_weights"):
                digests.setdefault(record["initial_weights"], []).append(record["label"])
        if len(digests) == 1:
            equal.append(f"{seed} ({next(iter(digests))[:12]})")
        elif digests:
            groups = "; ".join(f"{d[:12]}: {', '.join(labels)}" for d, labels in digests.items())
            sentences.append(
                f"Beware: with seed {seed} not all strategies began from the same weights "
                f"({groups}). Their scores are not paired."
            )
    if equal:
        word = "seed" if len(equal) == 1 else "seeds"
        sentences.insert(
            0,
            f"All strategies began from the same weights (by digest) with {word} "
            f"{', '.join(equal)}.",
        )
    return sentences


def _begin(folder: Path, identity: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """The plan in `folder`, made if there is none; raises ValueError if it is another one."""
    asked = json.loads(json.dumps({"identity": identity, "budget": str(budget)}))
    path = folder / PLAN_FILE
    (folder / "records").mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        plan = asked | {"updates": {}}
        write_json(path, plan)
        return plan
    plan = read_json(path)
    changed = _changes({k: plan[k] for k in asked}, asked)
    if changed:
        raise ValueError(
            f"{folder} holds another comparison: {'; '.join(changed)}. Name another folder with "
            "--output, or remove this one."
        )
    return plan


def _changes(before: Any, after: Any, prefix: str = "") -> list[str]:
    """What differs between two values of JSON, named by its path."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for name in {**before, **after}
            for change in _changes(before.get(name), after.get(name), f"{prefix}.{name}")
        ]
    if before == after:
        return []
    name = prefix.lstrip(".").removeprefix("identity.")
    return [f"{name} was {before!r} there and is {after!r} now"]


def _planned_updates(
    entry: Entry, plan: dict[str, Any], folder: Path, budget: Budget, calibrate: Calibrate
) -> int:
    """Updates of each run of `entry`, found once and kept; 0 if it diverges while it is timed."""
    known = plan["updates"]
    if entry.strategy not in known:
        kept: dict[str, Any] = {"label": entry.label}
        if budget.unit == "updates":
            kept["updates"] = int(budget.amount)
        else:
            logger.info(f"Timing updates of {entry.label}.")
            try:
                cost = calibrate(entry.config)
                kept |= {
                    "updates": updates_for(budget, cost),
                    "seconds_per_update": cost.seconds,
                    "gradient_evaluations_per_update": cost.gradient_evaluations,
                }
            except FloatingPointError as error:
                kept |= {"updates": 0, "message": str(error)}
        known[entry.strategy] = kept
        write_json(folder / PLAN_FILE, plan)
    return known[entry.strategy]["updates"]


def _train(
    entry: Entry, seed: int, updates: int, run: Path, train: Train, plan: dict[str, Any]
) -> Record:
    own = {"strategy": entry.strategy, "label": entry.label, "seed": seed}
    if not updates:
        return own | _diverged(plan["updates"][entry.strategy]["message"])
    try:
        record = train(entry.config, seed, updates, run)
    except FloatingPointError as error:
        return own | _diverged(str(error))
    record = _finite(record) | own
    if record["ended"] != INTERRUPTED and record.get("score") is None:
        message = record.get("message") or "its score is not finite."
        record |= {"ended": DIVERGED, "message": message}
    return record


def _diverged(message: str) -> Record:
    """The record of a run that left none."""
    return {
        "ended": DIVERGED,
        "updates": 0,
        "gradient_evaluations": 0,
        "seconds": 0.0,
        "score": None,
        "curve": [],
        "message": message,
    }


def _summary(where: str, record: Record) -> str:
    if record["ended"] == DIVERGED:
        return f"{where}: diverged. {record['message']}"
    name = record["score_name"].replace("_", " ")
    return f"{where}: {name} {record['score']:.4f} after {record['seconds']:,.1f} s."


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _stem(strategy: str) -> str:
    """A file name for a strategy: readable, and different for different ones."""
    readable = re.sub(r"[^A-Za-z0-9.=]+", "-", strategy).strip("-")[:60]
    return f"{readable}-{_digest(strategy)}"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
