"""Whatever composes passes the tests of its parts."""

import math
from functools import cache

import numpy as np
import pytest

from tests.training.strategies.toys import Quadratic, Words
from training.strategies.catalogue import (
    STRATEGIES,
    Link,
    batches_per_update,
    nest,
    resolve,
)
from training.strategies.rules import evaluating

COMPOSITES = (
    "lookahead(sam(accumulate(adamw, 4)), k=5)",
    "ema(diloco(accumulate(sgd, 2), 2, 4))",
    "swa(lookahead(lion), 0.05)",
    "ema(accumulate(adamw, 2), 0.5)",
    "swa(accumulate(momentum, 3), 0, every=2)",
    "ema(lookahead(sam(adam), k=2, alpha=0.3))",
    "lookahead(accumulate(sam(nesterov), 2), 3)",
    "sam(accumulate(lamb, 2))",
    "accumulate(sam(rmsprop), 2)",
    "extragradient(accumulate(sgd, 2))",
    "ema(extragradient(adam))",
    "local_sgd(adamw, 2, 3)",
    "local_sgd(sam(accumulate(adafactor, 2)), 2, 2)",
    "swa(local_sgd(momentum, 3, 2), 0)",
    "diloco(adamw, 3, 2)",
    "diloco(sam(lion), 2, 3, 0.5, 0.8)",
    "reptile(accumulate(adamw, 2), 3)",
    "ema(reptile(sam(adam), 2), 0.9)",
)
UPDATES = 7  # no multiple of any cycle above

# With these numbers a part does nothing. Of `reptile`, which begins its optimizer anew, that holds
# within a cycle.
NEUTRAL = {
    "accumulate": {"k": 1},
    "sam": {"rho": 0.0},
    "extragradient": {"rate": 0.0},
    "lookahead": {"alpha": 1.0},
    "local_sgd": {"workers": 1, "steps": 1},
    "diloco": {"workers": 1, "steps": 1, "rate": 1.0, "momentum": 0.0},
    "reptile": {"k": 1000},
    "ema": {"beta": 0.0},
    "swa": {"start": 1.0},
}


def new(expression):
    return Words(expression, sizes=(3, 2), dropout=0.3)


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
    passes = count * 2 ** sum(link.name in ("sam", "extragradient") for link in chain)
    assert (toy.rule.num_batches, toy.rule.num_evaluations) == (count, passes)
    assert toy.index == UPDATES * count
    for said in toy.said:
        assert all(map(math.isfinite, said.values()))
        assert 0 < said["num_targets"] <= 3 * count
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
    pairs = {}
    for expression in COMPOSITES:
        chain = resolve(expression)
        for i, link in enumerate(chain[:-1]):
            neutral = Link(link.part, link.numbers | NEUTRAL[link.name])
            around, inside = chain[:i], chain[i + 1 :]
            pairs[spelled([*around, neutral, *inside])] = spelled([*around, *inside])
    return list(pairs.items())


@cache
def on_quadratic(expression):
    toy = Quadratic(expression, centres=((0.0, 0.0), (1.0, 1.0), (0.5, -1.0)), examples=(1, 3))
    path, evaluated = [], []
    for _ in range(UPDATES):
        path += list(toy.run(1))
        evaluated.append(toy.evaluated())
    return np.array(path), np.array(evaluated)


@pytest.mark.parametrize(("neutral", "without"), with_and_without_each_part())
def test_a_part_with_its_neutral_number_changes_nothing(neutral, without):
    (path, evaluated), (inner_path, inner_evaluated) = on_quadratic(neutral), on_quadratic(without)
    np.testing.assert_allclose(path, inner_path, rtol=0, atol=1e-13)
    parts = [link.name for link in resolve(neutral)]
    if (
        parts[0] in ("ema", "swa")
        and NEUTRAL[parts[0]].items() <= resolve(neutral)[0].numbers.items()
    ):
        # Of the weights as they are, whatever a rule inside would have had evaluated.
        np.testing.assert_array_equal(evaluated, path)
    elif not {"lookahead", "reptile"} & set(parts):  # which evaluate the start of the cycle
        np.testing.assert_allclose(evaluated, inner_evaluated, rtol=0, atol=1e-13)


def test_the_neutral_numbers_are_tried_on_every_part_that_has_them():
    used = {link.name for expression in COMPOSITES for link in resolve(expression)}
    assert used & STRATEGIES.keys() == NEUTRAL.keys()
