"""Options of the commands that compare and search, and a code that all commands end with.

Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

INTERRUPTED = 130  # the exit code that shells give Ctrl-C

COMPARE = "train a recipe by several strategies and say which is better, or that none is"
SEARCH = "try settings of a recipe and say which were best"
FIND_RATE = "find a learning rate by a short run in which it grows"


def add_compare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", nargs="?", help="a name that `list` shows")
    sub.add_argument(
        "--strategies",
        required=True,
        metavar="A,B,...",
        help="the first one is compared with; e.g. adamw,accumulate:4,lookahead:5+sam,diloco:4x20; "
        "NAME@RATE sets the peak learning rate, as in muon@0.02; on a surface, the rate",
    )
    sub.add_argument(
        "--budget", help="of each run: 60s, 2000updates or 4000evaluations of gradients (60s)"
    )
    sub.add_argument(
        "--seeds", type=at_least(1), help="runs of each strategy, with seeds 0, 1, ... (3)"
    )
    sub.add_argument(
        "--surface",
        metavar="NAME",
        help="walk on a problem of two parameters instead of a recipe: "
        "bowl, ravine, rosenbrock or linear_regression",
    )
    sub.add_argument(
        "--updates", type=at_least(1), help="of each path on a surface (100; rosenbrock 500)"
    )
    _add_set(sub)
    _add_output(sub, "comparisons/NAME-DIGEST")


def add_search(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", help="a name that `list` shows")
    sub.add_argument(
        "--trials", type=at_least(1), default=20, help="in all, those done before included (20)"
    )
    sub.add_argument(
        "--space",
        help="what to try, e.g. optimizer.peak_learning_rate=1e-4..1e-2:log,batch_size=8|16|32,"
        "strategy=adamw|momentum (default: rate, batch size, decay and dropout around the recipe)",
    )
    sub.add_argument("--seed", type=at_least(0), default=0, help="of what is tried (0)")
    _add_set(sub)
    _add_output(sub, "searches/NAME-DIGEST")


def add_find_rate(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", help="a name that `list` shows")
    sub.add_argument("--low", type=float, default=1e-6, help="the first rate (1e-6)")
    sub.add_argument("--high", type=float, default=1.0, help="the last rate (1)")
    sub.add_argument("--updates", type=at_least(20), default=200, help="rates to try (200)")
    _add_set(sub)
    _add_output(sub, "rates/NAME")


def check_compare(options: argparse.Namespace) -> None:
    """Raises ValueError where options do not go together; fills in what was left out."""
    if (options.recipe is None) == (options.surface is None):
        raise ValueError(
            "compare takes a recipe or --surface NAME, one of the two, for example: "
            "compare sentiment --strategies adamw,sam --budget 2000updates"
        )
    if options.surface:
        foreign = {"--budget": options.budget, "--seeds": options.seeds, "--set": options.set}
        defaults: dict[str, object] = {}  # how far a path goes is the surface's own
    else:
        foreign = {"--updates": options.updates}
        defaults = {"budget": "60s", "seeds": 3}
    given = [name for name, value in foreign.items() if value]
    if given:
        kind = "on a --surface" if options.surface else "with a recipe, whose length is --budget"
        raise ValueError(f"{', '.join(given)}: not used {kind}. Leave it out.")
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def at_least(least: int):
    """An argparse type: whole numbers from `least` on."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"expected a whole number, {least} or more; received {text!r}"
            )
        return value

    return whole_number


def _add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting, e.g. optimizer.peak_learning_rate=1e-3 (repeatable)",
    )


def _add_output(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument("--output", type=Path, metavar="FOLDER", help=f"where to write ({default})")
