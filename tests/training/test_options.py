"""What a user may type after `compare`, `search` and `find-rate`."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from training.options import add_compare, add_find_rate, add_search, check_compare

ROOT = Path(__file__).resolve().parent.parent.parent


def parsed(add, *words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add(parser)
    return parser.parse_args(words)


def test_compare_has_the_defaults_it_tells():
    options = parsed(add_compare, "sst2", "--strategies", "adamw,sam")
    check_compare(options)
    assert (options.recipe, options.strategies) == ("sst2", "adamw,sam")
    assert (options.budget, options.seeds, options.output, options.set) == ("60s", 3, None, [])
    surface = parsed(add_compare, "--surface", "bowl", "--strategies", "sgd")
    check_compare(surface)
    assert surface.updates is None  # the surface's own


def test_compare_takes_all_of_its_options():
    words = "sst2 --strategies a,b --budget 2000updates --seeds 5 --set batch_size=8 --output x/y"
    options = parsed(add_compare, *words.split())
    check_compare(options)
    assert (options.budget, options.seeds) == ("2000updates", 5)
    assert (options.set, options.output) == (["batch_size=8"], Path("x/y"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--strategies a", "a recipe or --surface NAME, one of the two"),
        ("sst2 --surface bowl --strategies a", "a recipe or --surface NAME, one of the two"),
        ("sst2 --strategies a --updates 5", "--updates: not used with a recipe"),
        ("--surface bowl --strategies a --seeds 5", "--seeds: not used on a --surface"),
        ("--surface bowl --strategies a --budget 5s --set b=1", "--budget, --set: not used"),
    ],
)
def test_options_of_the_other_kind_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        check_compare(parsed(add_compare, *words.split()))


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_numbers_that_cannot_be_are_refused(number):
    with pytest.raises(argparse.ArgumentError, match="1 or more; received"):
        parsed(add_compare, "sst2", "--strategies", "a", "--seeds", number)


def test_search_and_find_rate_have_the_defaults_they_tell():
    search = parsed(add_search, "sst2")
    assert (search.trials, search.space, search.seed) == (20, None, 0)
    rates = parsed(add_find_rate, "sst2", "--high", "10")
    assert (rates.low, rates.high, rates.updates) == (1e-6, 10.0, 200)


def test_options_load_nothing_heavy():
    code = "import sys, training.options; print([m for m in sys.modules if m in {'tensorflow', "
    code += "'keras', 'numpy', 'matplotlib', 'optuna', 'scipy'}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
