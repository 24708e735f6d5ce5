"""Settings found by trying: Optuna's tree-structured Parzen estimator and median pruning.

A search is a folder: `study.db` (Optuna's store in sqlite), `search.json` and `search.md`. The
same command goes on until as many trials are done as it asks for; a search that was stopped
tries the same settings as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from training.compare import split_outside_brackets
from training.report import markdown_table, text_table
from training.runs import write_json

logger = logging.getLogger(__name__)

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 5  # neither pruned nor chosen by what came before
MOST_COMBINATIONS = 1_000  # that are looked at before a search begins
WARMUP_EVALUATIONS = 2  # of each trial, before it may be pruned
DIVERGED, REFUSED = "diverged", "refused"  # trials that failed; the attribute says why
NAMES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned"}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both possible; whole ones if both were typed so."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def suggest(self, trial: optuna.Trial, name: str) -> str:
        if self.is_whole:
            low, high = int(self.low), int(self.high)
            return str(trial.suggest_int(name, low, high, log=self.is_log))
        # Four digits: what is printed is what was tried.
        value = trial.suggest_float(name, self.low, self.high, log=self.is_log)
        return f"{min(max(float(f'{value:.4g}'), self.low), self.high):g}"

    def examples(self) -> tuple[str, ...]:
        ends = (self.low, self.high)
        return tuple(str(int(end)) if self.is_whole else f"{end:g}" for end in ends)


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> str:
        return str(trial.suggest_categorical(name, self.values))

    def examples(self) -> tuple[str, ...]:
        return self.values


Space = dict[str, Range | Choice]
OnEvaluation = Callable[[int, float], None]  # (updates done, score); raises to stop the run
Train = Callable[[list[str], int, OnEvaluation], float]  # (--set values, number of the trial, ...)


def parse_space(text: str) -> Space:
    """Reads `name=low..high`, `name=low..high:log` and `name=a|b|c`, with commas between them.

    >>> parse_space("batch_size=8|16,optimizer.warmup_steps=0..100")["batch_size"]
    Choice(values=('8', '16'))
    """
    space: Space = {}
    for part in split_outside_brackets(text, ","):
        name, separator, values = (piece.strip() for piece in part.partition("="))
        if not (name and separator and values):
            raise ValueError(
                "--space takes name=low..high, name=low..high:log or name=a|b|c with commas "
                "between them, for example optimizer.peak_learning_rate=1e-4..1e-2:log,"
                f"batch_size=8|16. Received: {part.strip()!r}"
            )
        if name in space:
            raise ValueError(f"--space names {name} more than once.")
        space[name] = _parse_range(name, values) if ".." in values else _parse_choice(name, values)
    return space


def _parse_range(name: str, text: str) -> Range:
    limits, _, scale = text.partition(":")
    try:
        low, high = (float(limit) for limit in limits.split(".."))
        is_valid = math.isfinite(low) and math.isfinite(high) and low < high
    except ValueError:
        is_valid = False
    if not is_valid or scale not in ("", "log") or (scale and low <= 0):
        raise ValueError(
            f"--space {name} takes low..high with low below high, or low..high:log with both "
            f"above 0. Received: {text!r}"
        )
    is_whole = all(limit.strip().lstrip("+-").isdecimal() for limit in limits.split(".."))
    return Range(low, high, bool(scale), is_whole)


def _parse_choice(name: str, text: str) -> Choice:
    values = tuple(value.strip() for value in split_outside_brackets(text, "|"))
    if not all(values) or len(set(values)) != len(values):
        raise ValueError(f"--space {name} takes different values, a|b|c. Received: {text!r}")
    return Choice(values)


def check_space(space: Space, configure: Callable[[list[str]], Any]) -> None:
    """Raises ValueError for what could only be refused, whatever else a trial has.

    That is a value of a choice, or a range at both of its ends. `configure` gets settings as
    `--set` takes them and raises ValueError for those it refuses. What may go together is tried,
    and left to the trials when it is more than `MOST_COMBINATIONS`.
    """
    for name, values in space.items():
        reasons = {value: _refusal(space, name, value, configure) for value in values.examples()}
        refused = {value: reason for value, reason in reasons.items() if reason}
        if refused and (isinstance(values, Choice) or len(refused) == len(reasons)):
            value, reason = next(iter(refused.items()))
            raise ValueError(f"--space {name}={value} would always be refused: {reason}")


def _refusal(
    space: Space, name: str, value: str, configure: Callable[[list[str]], Any]
) -> str | None:
    """Why `name=value` goes with nothing of the rest of the space; None if it may go."""
    options = [(value,) if n == name else others.examples() for n, others in space.items()]
    if math.prod(map(len, options)) > MOST_COMBINATIONS:
        return None
    reason = None
    for values in itertools.product(*options):
        try:
            configure([f"{n}={v}" for n, v in zip(space, values, strict=True)])
        except ValueError as error:
            reason = reason or str(error)
        else:
            return None
    return reason


def default_space(settings: dict[str, Any]) -> str:
    """What is worth trying for a recipe, as `--space` would say it; `settings` as in config.json.

    The learning rate a factor of 10 to either side of the recipe's, batches of half and double
    the size, and weight decay and dropout where the recipe has them; what follows a schedule, as
    dropout of a stage does, is left as it is.
    """
    optimizer = settings["optimizer"]
    rate, size = optimizer["peak_learning_rate"], settings["batch_size"]
    parts = [f"optimizer.peak_learning_rate={rate / 10:g}..{rate * 10:g}:log"]
    if isinstance(size, int):
        sizes = dict.fromkeys((max(size // 2, 1), size, size * 2))
        parts.append("batch_size=" + "|".join(map(str, sizes)))
    if isinstance(optimizer["weight_decay"], float) and optimizer["weight_decay"]:
        parts.append("optimizer.weight_decay=0.001..0.3:log")
    if "dropout" in settings["model"] and settings["dropout"] is None:
        parts.append("model.dropout=0.0..0.5")
    return ",".join(parts)


def search_folder(parent: Path, name: str, identity: dict[str, Any]) -> Path:
    """Where the search over these settings lives when the user names no folder."""
    text = json.dumps(identity, sort_keys=True)
    return parent / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def search(
    space: Space,
    *,
    folder: Path,
    identity: dict[str, Any],
    num_trials: int,
    seed: int,
    higher_is_better: bool,
    train: Train,
) -> optuna.Study:
    """Goes on until `num_trials` trials are done in all, pruned ones and diverged ones included.

    `identity` is what makes trials comparable (recipe, settings, data, space, seed); a folder
    that holds another search raises ValueError. `train(assignments, number, on_evaluation)` gets
    settings as `--set` takes them and returns the score; it calls `on_evaluation(updates, score)`
    after each evaluation and lets pass what that raises. A run that diverges
    (FloatingPointError) or whose settings are refused (ValueError) scores as badly as can be, so
    that its neighbourhood is avoided. Any other exception ends the search, whose finished trials
    are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # our own lines say the same, shorter
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').resolve()}",
        study_name="search",
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_EVALUATIONS
        ),
    )
    _check_identity(study, identity, folder)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # a kill left it behind
    worst = -math.inf if higher_is_better else math.inf

    def objective(trial: optuna.Trial) -> float:
        assignments = [f"{name}={values.suggest(trial, name)}" for name, values in space.items()]
        trial.set_user_attr("assignments", assignments)
        number, reached = num_done(study) + 1, list[int]()
        logger.info(f"Trial {number} of {num_trials}: {' '.join(assignments)}")

        def on_evaluation(updates: int, score: float) -> None:
            if not updates:
                return  # where all start from is no reason to prune
            # Counted in evaluations: trials of other batch sizes meet there, not at an update.
            trial.report(score, len(reached) + 1)
            reached.append(updates)
            if trial.should_prune():
                raise optuna.TrialPruned()

        try:
            score = train(assignments, number, on_evaluation)
        except FloatingPointError as error:
            trial.set_user_attr(DIVERGED, str(error))
            return worst
        except ValueError as error:
            trial.set_user_attr(REFUSED, str(error))
            return worst
        finally:
            trial.set_user_attr("evaluated_at", reached)
        if not math.isfinite(score):
            trial.set_user_attr(DIVERGED, f"its score is {score}")
            return worst
        return score

    while (done := num_done(study)) < num_trials:
        # A generator of its own for each trial: those drawn after a stop are those drawn without.
        study.sampler = optuna.samplers.TPESampler(
            seed=_seed(seed, done), n_startup_trials=STARTUP_TRIALS
        )
        study.optimize(objective, n_trials=1)
        logger.info(_outcome(_done(study)[-1], num_done(study)))
    return study


def num_done(study: optuna.Study) -> int:
    return len(_done(study))


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=DONE)


def _seed(seed: int, trial: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {trial}".encode()).digest()[:4])


def _check_identity(study: optuna.Study, identity: dict[str, Any], folder: Path) -> None:
    asked = json.loads(json.dumps(identity))
    known = study.user_attrs.get("identity", asked)
    if known != asked:
        names = ", ".join(n for n in {**known, **asked} if known.get(n) != asked.get(n))
        raise ValueError(
            f"{folder} holds another search: {names} differ. Name another folder with --output, "
            "or remove this one."
        )
    study.set_user_attr("identity", asked)


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Raises ValueError when every trial was pruned or failed."""
    done = _done(study)
    finished = [t for t in done if t.state == TrialState.COMPLETE and not _failure(t)]
    if not finished:
        reasons = [_reason(trial) for trial in done if _failure(trial)]
        last = f" The last that failed: {reasons[-1]}" if reasons else ""
        raise ValueError(
            "No trial reached its end with a finite score. Try lower learning rates or other "
            f"settings with --space, or more --trials.{last}"
        )
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(finished, key=lambda trial: sign * (trial.value or 0.0))


def fit_command(recipe: str, trial: FrozenTrial, settings: Sequence[str] = ()) -> str:
    """The command that trains the recipe with the trial's settings, ready to be typed."""
    words = ["python", "-m", "training", "fit", recipe]
    for assignment in (*settings, *trial.user_attrs["assignments"]):
        words += ["--set", assignment]
    return shlex.join(words)


def trial_rows(study: optuna.Study, score_name: str) -> list[list[str]]:
    """One row a trial, the best first, the header before it."""
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1

    def order(numbered: tuple[int, FrozenTrial]) -> tuple[bool, float]:
        trial = numbered[1]
        return trial.state != TrialState.COMPLETE, -sign * (trial.value or 0.0)

    trials = sorted(enumerate(_done(study), 1), key=order)
    names = [a.partition("=")[0] for a in trials[0][1].user_attrs["assignments"]] if trials else []
    rows = [["trial", "ended", score_name.replace("_", " "), "updates", *names]]
    for number, trial in trials:
        values = [a.partition("=")[2] for a in trial.user_attrs["assignments"]]
        updates = f"{_last_update(trial):,}"
        score = "–" if _failure(trial) or trial.value is None else f"{trial.value:.4f}"
        rows.append([str(number), _ended(trial), score, updates, *values])
    return rows


def write_search(study: optuna.Study, *, folder: Path, recipe: str, score_name: str) -> str:
    """Writes search.json and search.md; returns the table of trials as text."""
    rows = trial_rows(study, score_name)
    trials = [
        {
            "trial": number,
            "ended": _ended(trial),
            "score": None if _failure(trial) else trial.value,
            "reason": _reason(trial),
            "settings": trial.user_attrs["assignments"],
            "evaluations": [
                {"updates": updates, "score": trial.intermediate_values[count]}
                for count, updates in enumerate(trial.user_attrs["evaluated_at"], 1)
            ],
        }
        for number, trial in enumerate(_done(study), 1)
    ]
    write_json(folder / "search.json", {"recipe": recipe, "score": score_name, "trials": trials})
    (folder / "search.md").write_text(f"# {recipe}\n\n{markdown_table(rows)}\n", encoding="utf-8")
    return text_table(rows)


def _failure(trial: FrozenTrial) -> str | None:
    """How a trial failed; None of one that did not."""
    return next((name for name in (DIVERGED, REFUSED) if name in trial.user_attrs), None)


def _reason(trial: FrozenTrial) -> str:
    """Why a trial failed; empty of one that did not."""
    failure = _failure(trial)
    return trial.user_attrs[failure] if failure else ""


def _last_update(trial: FrozenTrial) -> int:
    """That of the last evaluation."""
    return max(trial.user_attrs["evaluated_at"], default=0)


def _ended(trial: FrozenTrial) -> str:
    return _failure(trial) or NAMES[trial.state]


def _outcome(trial: FrozenTrial, number: int) -> str:
    if failure := _failure(trial):
        return f"Trial {number} {failure}: {_reason(trial)}"
    if trial.state == TrialState.PRUNED:
        return f"Trial {number} pruned after update {_last_update(trial):,}."
    return f"Trial {number}: {trial.value:.4f}"
