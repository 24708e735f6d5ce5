"""Whatever composes passes the tests of its parts."""

import math
from functools import cache

import numpy as np
import pytest

from tests.training.strategies.composites import COMPOSITES, NEUTRAL
from tests.training.strategies.proofs_truncation import Recurrent
from tests.training.strategies.toys import Quadratic, Words
from training.strategies.catalogue import (
    PARTS,
    STRATEGIES,
    Link,
    batches_per_update,
    nest,
    resolve,
)
from training.strategies.rules import evaluating

UPDATES = 7  # no multiple of any cycle in them


def names(expression):
    return [link.name for link in resolve(expression)]


def new(expression):
    if "truncate" in names(expression):  # wants a network with a state
        return Recurrent(expression, sizes=(3, 2))
    return Words(expression, sizes=(3, 2), dropout=0.3, batch_size=3)


TWICE = ("sam", "extragradient", "fgm", "r_drop")  # a pass more for every one of the rule inside


@cache
def uninterrupted(expression):
    """The weights after each update, and all states from before the first on."""
    toy = new(expression)
    states, path, evaluated = [toy.state()], [toy.flat()], [toy.evaluated()]
    for _ in range(UPDATES):
        path += list(toy.run(1))
        states.append(toy.state())
        evaluated.append(toy.evaluated())
    return toy, states, np.array(path), np.array(evaluated)


@pytest.mark.parametrize("expression", COMPOSITES)
def test_a_composite_takes_updates(expression):
    toy, _, path, evaluated = uninterrupted(expression)
    assert np.isfinite(path).all() and np.isfinite(evaluated).all()
    assert np.abs(path[-1] - path[0]).max() > 1e-3
    assert np.abs(evaluated[-1] - evaluated[0]).max() > 1e-3
    np.testing.assert_array_equal(evaluated[0], path[0])
    chain = resolve(expression)
    count = batches_per_update(chain)
    passes = count * 2 ** sum(link.name in TWICE for link in chain)
    assert (toy.rule.num_batches, toy.rule.num_evaluations) == (count, passes)
    assert toy.index == UPDATES * count
    for said in toy.said:
        assert all(map(math.isfinite, said.values()))
        assert 0 < said["num_targets"] <= (21 if "truncate" in names(expression) else 3) * count
    diagnostics = {name: float(value) for name, value in toy.rule.diagnostics().items()}
    assert all(map(math.isfinite, diagnostics.values()))


@pytest.mark.parametrize("expression", COMPOSITES)
def test_a_composite_goes_on_bit_for_bit_from_any_update(expression):
    _, states, path, evaluated = uninterrupted(expression)
    toy = new(expression)
    for stop in range(UPDATES):  # the first into a rule that has taken no update, as after a crash
        toy.restore(states[stop])
        np.testing.assert_array_equal(toy.evaluated(), evaluated[stop])
        np.testing.assert_array_equal(toy.run(UPDATES - stop), path[stop + 1 :])
        np.testing.assert_array_equal(toy.evaluated(), evaluated[-1])


@pytest.mark.parametrize("expression", COMPOSITES)
def test_several_updates_a_call_are_the_same_updates(expression):
    toy, _, path, _ = uninterrupted(expression)
    together = new(expression)
    np.testing.assert_allclose(together.run(6, per_call=3), path[[3, 6]], rtol=0, atol=1e-6)
    for one, other in zip(toy.said, together.said, strict=False):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("expression", COMPOSITES)
def test_evaluating_gives_the_weights_back(expression):
    toy, states, path, evaluated = uninterrupted(expression)
    toy.restore(states[-1])
    with evaluating(toy.rule):
        np.testing.assert_array_equal(toy.flat(), evaluated[-1])
    np.testing.assert_array_equal(toy.flat(), path[-1])
    with pytest.raises(KeyboardInterrupt), evaluating(toy.rule):
        raise KeyboardInterrupt
    np.testing.assert_array_equal(toy.flat(), path[-1])


def spelled(chain):
    *around, optimizer = chain
    return nest([(link.name, tuple(link.numbers.values())) for link in around], optimizer.name)


def with_and_without_each_part():
    """(neutral, without, how often the loss counts there)"""
    pairs = {}
    for expression in COMPOSITES:
        chain = resolve(expression)
        for i, link in enumerate(chain[:-1]):
            neutral = Link(link.part, link.numbers | NEUTRAL[link.name])
            around, inside = chain[:i], chain[i + 1 :]
            factor = 2.0 if link.name == "fgm" else 1.0
            pairs[spelled([*around, neutral, *inside])] = spelled([*around, *inside]), factor
    return [(neutral, *rest) for neutral, rest in pairs.items()]


@cache
def plainly(problem, expression, factor=1.0):
    """The weights and what would be evaluated, after each update of a problem without dropout."""
    if problem is Quadratic:
        centres = ((0.0, 0.0), (1.0, 1.0), (0.5, -1.0))
        toy = Quadratic(expression, centres=centres, examples=(1, 3))
    elif problem is Recurrent:
        toy = Recurrent(expression, sizes=(3, 2))
    else:  # batches of one size, as `dp_sgd` wants it
        toy = Words(expression, sizes=(2,), batch_size=2, factor=factor)
    path, evaluated = [], []
    for _ in range(UPDATES):
        path += list(toy.run(1))
        evaluated.append(toy.evaluated())
    return np.array(path), np.array(evaluated)


def problem_for(parts):
    if "truncate" in parts:
        return Recurrent, 1e-13
    if {"fgm", "r_drop", "dp_sgd"} & set(parts):  # want embeddings, logits, rows; in float32
        return Words, 1e-6
    return Quadratic, 1e-13


@pytest.mark.parametrize(("neutral", "without", "factor"), with_and_without_each_part())
def test_a_part_with_its_neutral_number_changes_nothing(neutral, without, factor):
    parts = names(neutral)
    problem, tolerance = problem_for(parts)
    path, evaluated = plainly(problem, neutral)
    inner_path, inner_evaluated = plainly(problem, without, factor)
    np.testing.assert_allclose(path, inner_path, rtol=0, atol=tolerance)
    outermost = resolve(neutral)[0]
    if parts[0] in ("ema", "swa") and NEUTRAL[parts[0]].items() <= outermost.numbers.items():
        # Of the weights as they are, whatever a rule inside would have had evaluated.
        np.testing.assert_array_equal(evaluated, path)
    elif not {"lookahead", "reptile"} & set(parts):  # which evaluate the start of the cycle
        np.testing.assert_allclose(evaluated, inner_evaluated, rtol=0, atol=tolerance)


def test_every_part_is_in_a_composite_and_every_strategy_has_neutral_numbers():
    """A new part fails here until it has both."""
    assert {name for expression in COMPOSITES for name in names(expression)} == PARTS.keys()
    assert NEUTRAL.keys() == STRATEGIES.keys()
