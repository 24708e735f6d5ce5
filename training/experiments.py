"""What `compare`, `search` and `find-rate` do and print.

TensorFlow and Matplotlib are imported inside the functions that need them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from model.runtime import import_tensorflow
from training.config import RunConfig, override
from training.hardware import by_device
from training.options import INTERRUPTED, check_compare
from training.recipes import recipe
from training.runs import fingerprints

# Settings that a command decides by itself: what the user can type in their place.
_OF_COMPARE = {
    "seed": "--seeds says how many runs there are, with seeds 0, 1, ...",
    "epochs": "--budget is the length of every run",
    "max_updates": "--budget is the length of every run",
    "evaluate_every": "every run is evaluated 20 times",
    "patience": "no run stops early, so that all spend the --budget",
}
_OF_FIND_RATE = {
    "optimizer.peak_learning_rate": "the rate goes from --low to --high",
    "optimizer.schedule": "the rate goes from --low to --high",
    "epochs": "--updates is the number of updates",
    "max_updates": "--updates is the number of updates",
}


def _refuse_decided(assignments: list[str], decided: dict[str, str]) -> None:
    """Raises ValueError for a setting of the user that the command would put aside."""
    for assignment in assignments:
        name = assignment.partition("=")[0].strip()
        if name in decided:
            raise ValueError(f"--set {name} does nothing here: {decided[name]}. Leave it out.")


def compare(options: argparse.Namespace) -> int:
    check_compare(options)
    _refuse_decided(options.set, _OF_COMPARE)
    import_tensorflow()
    return _compare_on_surface(options) if options.surface else _compare_recipe(options)


def _compare_recipe(options: argparse.Namespace) -> int:
    from training.compare import compare_recipe
    from training.report import brief_table, in_words, write_report
    from training.trials import calibrate, train

    config = by_device(recipe(options.recipe), options.set)
    comparison, folder, is_interrupted = compare_recipe(
        options.recipe,
        config,
        data=fingerprints(config),
        strategies=options.strategies,
        budget=options.budget,
        num_seeds=options.seeds,
        output=options.output,
        train=train,
        calibrate=calibrate,
    )
    results = write_report(comparison, folder)
    print(f"\n{brief_table(comparison, results)}\n\n{in_words(results)}")
    print(f"\nReport: {folder / 'report.html'}")
    if is_interrupted:
        print("Interrupted. What was done is kept; run the same command again.")
        return INTERRUPTED
    return 0


def _compare_on_surface(options: argparse.Namespace) -> int:
    from training.compare import split_rate, split_strategies, strategy_of
    from training.surfaces import RuleWalker, path, surface, write_surface_report

    on = surface(options.surface)
    updates = options.updates or on.updates

    def walk(label: str) -> np.ndarray:
        name, rate = split_rate(label)
        strategy = strategy_of(name, "sgd")
        return path(lambda place: RuleWalker(strategy, place, updates, rate), on, updates)

    paths = {label: walk(label) for label in split_strategies(options.strategies)}
    folder = options.output or Path("comparisons") / on.name
    print(write_surface_report(on, paths, updates, folder))
    print(f"\nPicture: {folder / 'surface.png'}")
    return 0


def search(options: argparse.Namespace) -> int:
    from training.search import (
        best_trial,
        check_space,
        default_space,
        fit_command,
        parse_space,
        search_folder,
        write_search,
    )
    from training.search import search as run_search

    config = by_device(recipe(options.recipe), options.set)
    text = options.space or default_space(config.to_dict())
    space = parse_space(text)
    check_space(space, lambda assignments: override(config, assignments))
    identity = {
        "recipe": options.recipe,
        "settings": config.to_dict(),
        "data": fingerprints(config),
        "space": text,
        "seed": options.seed,
    }
    folder = options.output or search_folder(Path("searches"), options.recipe, identity)
    import_tensorflow()
    from training.trials import metric_of, try_settings

    metric = metric_of(config)
    study = run_search(
        space,
        folder=folder,
        identity=identity,
        num_trials=options.trials,
        seed=options.seed,
        higher_is_better=metric != "loss",
        train=lambda assignments, number, on_evaluation: try_settings(
            override(config, assignments), on_evaluation
        ),
    )
    score_name = f"validation_{metric}"
    print(write_search(study, folder=folder, recipe=options.recipe, score_name=score_name))
    best = best_trial(study)
    print(f"\nBest {score_name.replace('_', ' ')}: {best.value:.4f}. Train with it:")
    print(f"  {fit_command(options.recipe, best, options.set)}")
    return 0


def find_rate(options: argparse.Namespace) -> int:
    _refuse_decided(options.set, _OF_FIND_RATE)
    config = by_device(recipe(options.recipe), options.set)
    import_tensorflow()
    from training.rate_finder import advice, write_rate_figure
    from training.trials import range_test

    test = range_test(
        config, options.runs, low=options.low, high=options.high, num_updates=options.updates
    )
    folder = options.output or Path("rates") / options.recipe
    folder.mkdir(parents=True, exist_ok=True)
    write_rate_figure(test, folder)
    print(f"{advice(test)}\nPicture: {folder / 'learning_rates.png'}")
    tell_initial_weights(config, config.name)
    return 0


def tell_initial_weights(config: RunConfig, stage: str) -> None:
    """Says which stages were not trained before a trial of `stage` alone, if there are any."""
    names = [earlier.name for earlier in config.stages]
    skipped = names[: names.index(stage)]
    if skipped:
        print(
            f"This was stage {stage} from the initial weights: {', '.join(skipped)}, which the run "
            "trains first, did not come before it. With trained weights it may be otherwise."
        )
