"""python -m training: what a user types, parsed; the work is in `commands.py`.

Nothing heavy is imported here, so `--help` and a mistyped name answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from training.options import (
    COMPARE,
    FIND_RATE,
    INTERRUPTED,
    SEARCH,
    add_compare,
    add_find_rate,
    add_search,
)
from training.recipes import DEFAULT_RECIPES


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("training").setLevel(logging.INFO)
    from training import commands

    try:
        return commands.COMMANDS[options.command](options)
    except KeyboardInterrupt:
        print("Interrupted. What was saved is kept; run the same command again.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__module__ != "tensorflow.python.framework.errors_impl":
            raise
        reason = str(error).splitlines()[0]
        if "Collective" in str(error) or type(error).__name__ == "UnavailableError":
            print(
                "Error: another process of this run has ended or cannot be reached. Start all of "
                f"them again: they go on from the last checkpoint. ({reason})",
                file=sys.stderr,
            )
            return 1
        print(
            f"Error: TensorFlow cannot read or compute this: {reason} "
            "If a checkpoint is damaged, fit again with --restart.",
            file=sys.stderr,
        )
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # argparse takes `texts` beside the run or not at all: those after an option are left over.
    if options.command == "predict" and not any(word.startswith("-") for word in rest):
        options.texts += rest
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m training",
        description="Train text models, evaluate them, export them for TensorFlow Serving. "
        f"Without a command: all of it for the recipes {', '.join(DEFAULT_RECIPES)}.",
    )

    def places(sub: argparse.ArgumentParser, runs: object, exports: object) -> None:
        sub.add_argument("--runs", type=Path, default=runs, help="folder of runs (runs)")
        sub.add_argument(
            "--exports", type=Path, default=exports, help="folder of exports (exports)"
        )

    places(top, Path("runs"), Path("exports"))
    top.set_defaults(command="all", recipes=list(DEFAULT_RECIPES), **_NO_CHANGES)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=name)
        places(sub, argparse.SUPPRESS, argparse.SUPPRESS)  # also after the command
        return sub

    fit = command("fit", "train a recipe, or go on where it was stopped")
    fit.add_argument(
        "recipe",
        nargs="?",
        help="a name that `list` shows, a first step's, or auto: tries several on --data and keeps "
        "the best",
    )
    fit.add_argument(
        "--budget",
        help="seconds or minutes of training, as 60s or 20m: the run is cut to what this machine "
        "does in them (auto: 300s)",
    )
    fit.add_argument("--config", type=Path, help="a run's config.json instead of a recipe")
    fit.add_argument("--name", help="of the run and its export (default: the recipe's)")
    fit.add_argument(
        "--refit",
        action="store_true",
        help="then once more on training and validation texts together, as often as was best",
    )
    how = fit.add_mutually_exclusive_group()
    how.add_argument("--restart", action="store_true", help="discard the run and begin again")
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="build all, take an update of each stage, tell what the run will be; keep nothing",
    )
    how.add_argument(
        "--overfit-one-batch",
        action="store_true",
        help="train on the first batch alone, and fail unless its loss goes near 0; keep nothing",
    )
    fit.add_argument("--stage", help="of --overfit-one-batch, in a run of several (the last)")
    fit.add_argument("--updates", type=int, help="of --overfit-one-batch at most (200)")
    fit.add_argument(
        "--replicas",
        type=int,
        help="parts of every batch worked on at once, on GPUs or parts of the processor "
        "(as many as GPUs; processes are found through TF_CONFIG)",
    )
    _add_changes(fit)

    several = command("all", "fit, evaluate and export recipes, reusing what is there")
    several.add_argument("recipes", nargs="*", default=list(DEFAULT_RECIPES))
    _add_changes(several)

    evaluate = command("evaluate", "measure a run on its test split or on a file")
    evaluate.add_argument("run", help="a run's folder, or its name for the newest one")
    evaluate.add_argument("--data", type=Path, help="a labelled file instead of the test split")
    evaluate.add_argument("--text-column")
    evaluate.add_argument("--label-column")
    evaluate.add_argument(
        "--adapt",
        action="append",
        default=[],
        metavar="METHOD[:NUMBERS]",
        help="optimise while predicting, beside the static model: dynamic (language models), tent, "
        "ttt or neighbours (classifiers), e.g. dynamic:rate=0.05 (repeatable)",
    )

    predict = command("predict", "label texts, or write on from prompts")
    predict.add_argument("run", help="a run's folder, or its name for the newest one")
    predict.add_argument("texts", nargs="*", help="texts; without any, lines of standard input")
    predict.add_argument("--file", type=Path, help="texts from a CSV, TSV, JSONL, Parquet or .txt")
    predict.add_argument("--text-column")
    predict.add_argument("--format", choices=("lines", "csv", "jsonl"), default="lines")
    # None: not asked for. What a generator then takes stands in `commands.SAMPLING`.
    predict.add_argument("--max-tokens", type=int, help="of a generator's answer (120)")
    predict.add_argument("--temperature", type=float, help="of a generator; 0 is greedy (0.8)")
    predict.add_argument("--top-k", type=int, help="of a generator; 0 keeps all (0)")
    predict.add_argument("--top-p", type=float, help="of a generator; 1 keeps all (0.95)")
    predict.add_argument("--seed", type=int, help="of a generator (0)")

    export = command("export", "write a run's best weights as the next version to serve")
    export.add_argument("run", help="a run's folder, or its name for the newest one")
    export.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="how a language model's matrices are stored (float32); fewer bytes, nearly its texts",
    )

    verify = command(
        "verify-resume", "prove that a killed run ends like one left alone, bit by bit"
    )
    verify.add_argument("recipe", help="a name that `list` shows; it is shortened to seconds")
    verify.add_argument("--kills", type=int, default=3, help="at random moments (3)")
    verify.add_argument("--seed", type=int, default=0, help="of those moments (0)")
    _add_settings(verify)

    add_compare(command("compare", COMPARE))
    add_search(command("search", SEARCH))
    add_find_rate(command("find-rate", FIND_RATE))

    check = command("check", "look for repeats, leakage and contradictions in a data set")
    check.add_argument("name", nargs="?", help="a data set or a recipe that `list` shows")
    check.add_argument("--examples", type=int, default=3, help="of each finding (3)")
    _add_file(check)

    command("list", "recipes, models, tokenizers, data sets, optimizers and strategies")

    plot = command("plot-schedule", "draw schedules over the updates of a run")
    plot.add_argument("expressions", nargs="+", help="e.g. cosine 'step(every=100, factor=0.5)'")
    plot.add_argument("--updates", type=int, default=1000, help="of the run (1000)")
    plot.add_argument("--output", type=Path, default=Path("schedule.png"), help=".png or .svg")
    return top


# What `_add_changes` adds, for a call without a command.
_NO_CHANGES: dict[str, object] = {
    "set": [],
    "data": None,
    "text_column": None,
    "label_column": None,
    "validation_data": None,
    "test_data": None,
    "preset": None,
}


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, e.g. optimizer.peak_learning_rate=1e-3 (repeatable)",
    )


def _add_changes(sub: argparse.ArgumentParser) -> None:
    _add_settings(sub)
    _add_file(sub)


def _add_file(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", help="your own file: CSV, TSV, JSONL, Parquet; .txt for generation")
    sub.add_argument("--text-column", help="of your file; found by its name if left out")
    sub.add_argument("--label-column", help="of your file; found by its name if left out")
    sub.add_argument("--validation-data", help="your own validation file")
    sub.add_argument("--test-data", help="your own test file")
    sub.add_argument(
        "--preset",
        metavar="FOLDER",
        help="fine-tune this KerasHub preset in place of the recipe's network: a folder that "
        "save_to_preset wrote, or a name where there is a network",
    )


if __name__ == "__main__":
    sys.exit(main())
