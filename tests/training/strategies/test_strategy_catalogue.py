import inspect

import pytest

from training.expressions import parse_short
from training.optimizers import OPTIMIZERS as BUILDERS
from training.strategies.build import LOSSES, RULES
from training.strategies.catalogue import (
    LOSS,
    OPTIMIZER,
    OPTIMIZERS,
    PARTS,
    STRATEGIES,
    canonical,
    nest,
    num_workers,
    resolve,
    with_full_batches,
)


def names_and_numbers(expression):
    return [(link.name, link.numbers) for link in resolve(expression)]


def test_an_expression_is_a_chain_with_all_numbers():
    assert names_and_numbers("lookahead(sam(accumulate(adamw, 4)), k=6)") == [
        ("lookahead", {"k": 6, "alpha": 0.5}),
        ("sam", {"rho": 0.05}),
        ("accumulate", {"k": 4}),
        ("adamw", {"beta_1": 0.9, "beta_2": 0.999}),
    ]


def test_whole_numbers_are_whole_and_others_are_not():
    (link, _) = resolve("diloco(sgd, 4.0, steps=8, rate=1)")
    types = {name: type(value) for name, value in link.numbers.items()}
    assert types == {"workers": int, "steps": int, "rate": float, "momentum": float}


REFUSED_CALLS = {
    "adamv": "unknown part 'adamv'. Optimizers: sgd, .*Strategies around one: ",
    "sam(adamv)": "unknown part 'adamv'",
    "sam": r"sam goes around an optimizer or another part, for example sam\(adamw\)",
    "sam(0.1)": "sam goes around an optimizer .* Received: sam\\(0.1\\)",
    "sam(true)": "sam goes around an optimizer",
    "sam(none)": "sam goes around an optimizer",
    "sam(rho=0.1)": "sam goes around an optimizer",
    "sam(lookahead)": "lookahead goes around an optimizer",
    "sam(adamw, 0.1, 0.2)": "sam takes rho. Received: sam",
    "sam(adamw, rate=0.1)": "sam has no further number 'rate'; it takes rho",
    "sam(adamw, 0.1, rho=0.2)": "sam has no further number 'rho'",
    "sam(adamw, sgd)": "sam's rho must be a number of at least 0. Received: ",
    "sam(adamw, -1)": "sam's rho must be a number of at least 0. Received: -1",
    "sam(adamw, none)": "sam's rho must be a number",
    "sam(adamw, true)": "sam's rho must be a number of at least 0. Received: True",
    "accumulate(adamw, 2.5)": "accumulate's k must be a whole number of at least 1. Received: 2.5",
    "accumulate(adamw, 0)": "accumulate's k must be a whole number of at least 1. Received: 0",
    "lookahead(adamw, alpha=2)": "alpha must be a number of at least 0 and at most 1. Received: 2",
    "sgd(0.1)": "sgd takes no numbers",
    "sgd(adamw)": "sgd takes no numbers",
    "sgd(rate=1)": "sgd has no further number 'rate'; it takes none",
    "4": "must be a name",
    "sam(adamw": "must be names, numbers",
}


@pytest.mark.parametrize("expression", REFUSED_CALLS)
def test_what_cannot_be_read_is_refused(expression):
    with pytest.raises(ValueError, match=REFUSED_CALLS[expression]) as error:
        resolve(expression, "stages.0.strategy")
    assert str(error.value).startswith("stages.0.strategy")


# An order that makes no sense -> the reason.
_PASSES = ("accumulate", "truncate", "sam", "extragradient", "fgm")
_GRADIENT = (*_PASSES, "l1", "l2", "gradient_noise", "loss_scale")
_ONCE = ("r_drop", "sam", "extragradient", "fgm", "l1", "l2", "gradient_noise", "loss_scale")
_ACROSS = ("lookahead", "local_sgd", "diloco", "reptile")
REFUSED_ORDERS = {
    # Levels.
    "sam(lookahead(sgd))": "lookahead acts across updates and cannot stand inside sam, which makes "
    r"the gradient of one update. Turn them around: lookahead\(sam\(",
    "lookahead(ema(sgd))": r"ema averages the weights and cannot stand .* ema\(lookahead\(",
    "accumulate(ema(sgd))": r"Turn them around: ema\(accumulate\(",
    "r_drop(sam(sgd))": r"Turn them around: sam\(r_drop\(",
    "r_drop(swa(sgd))": r"Turn them around: swa\(r_drop\(",
    # Within one update.
    "accumulate(accumulate(sgd))": "one window inside another is one window",
    "truncate(accumulate(sgd))": r"write accumulate\(truncate\(",
    "truncate(l2(accumulate(sgd)))": r"write accumulate\(truncate\(",
    "truncate(truncate(sgd))": "chunks cannot be cut into chunks",
    **{
        f"truncate({inner}(sgd))": rf"belong to one gradient; write {inner}\(truncate\("
        for inner in ("sam", "extragradient", "fgm")
    },
    "truncate(r_drop(sgd))": "two passes would need two carried states",
    "gradient_noise(loss_scale(sgd))": r"write loss_scale\(gradient_noise\(",
    **{f"{name}({name}(sgd))": "one is enough" for name in _ONCE},
    "l2(accumulate(l2(sgd)))": "one is enough",
    "dp_sgd(dp_sgd(sgd))": "the privacy accounting covers",
    **{f"dp_sgd({name}(sgd))": "the privacy accounting covers" for name in _GRADIENT},
    **{f"{name}(dp_sgd(sgd))": "the privacy accounting covers" for name in _GRADIENT},
    "dp_sgd(r_drop(sgd))": "the privacy accounting covers",
    **{
        f"{outer}(loss_scale(sgd))": rf"skip the whole update.*write loss_scale\({outer}\("
        for outer in _PASSES
    },
    **{
        f"{outer}(gradient_noise(sgd))": rf"once an update; write gradient_noise\({outer}\("
        for outer in _PASSES
    },
    # Across updates.
    **{
        f"{outer}({inner}(sgd))": "both keep weights of earlier updates"
        for outer in _ACROSS
        for inner in _ACROSS
    },
    **{
        f"{outer}({noisy}(sgd))": "all workers would draw the same"
        for outer in ("local_sgd", "diloco")
        for noisy in ("dp_sgd", "gradient_noise")
    },
    **{
        f"{outer}({inner})": "Schedule-Free keeps its own average"
        for outer in (*_ACROSS, "ema", "swa")
        for inner in ("schedule_free_sgd", "schedule_free_adamw")
    },
    "ema(accumulate(schedule_free_adamw))": "ema cannot stand around schedule_free_adamw",
    # Averages.
    "ema(swa(sgd))": "only one average can be evaluated and exported",
    "swa(ema(sgd))": "only one average",
    "ema(ema(sgd))": "only one average",
    "swa(swa(sgd))": "only one average",
}


@pytest.mark.parametrize("expression", REFUSED_ORDERS)
def test_an_order_that_makes_no_sense_is_refused_with_the_reason(expression):
    with pytest.raises(ValueError, match=REFUSED_ORDERS[expression]) as error:
        resolve(expression, "strategy")
    assert str(error.value).startswith(f"strategy={expression}: ")


def test_every_pair_that_is_refused_for_more_than_its_level_is_listed_here():
    listed = {expression.rstrip(")").removesuffix("(sgd") for expression in REFUSED_ORDERS}
    for outer in STRATEGIES.values():
        for inner in PARTS.values():
            if inner.level < outer.level:
                continue
            pair = f"{outer.name}({inner.name}"
            try:
                resolve(f"{pair})" if inner.level == OPTIMIZER else f"{pair}(sgd))")
            except ValueError:
                assert pair in listed
            else:
                assert pair not in listed


def test_every_part_can_stand_around_an_optimizer_alone():
    for name in STRATEGIES:
        assert len(resolve(f"{name}(sgd)")) == 2
    for name in OPTIMIZERS:
        assert len(resolve(name)) == 1


def test_canonical_is_one_text_for_equal_strategies():
    text = "lookahead(sam(accumulate(sgd, k=4), rho=0.05), k=5, alpha=0.5)"
    for same in ("lookahead(sam(accumulate(sgd)))", "lookahead(sam(accumulate(sgd,4)),alpha=.5)"):
        assert canonical(same) == text
    assert canonical(text) == text
    assert canonical("sgd") == "sgd"


@pytest.mark.parametrize(
    "expression", ["sam(sgd, 0.123456789)", "accumulate(sgd, 1234567)", "ema(sgd, 1e-300)"]
)
def test_canonical_changes_no_number(expression):
    assert names_and_numbers(canonical(expression)) == names_and_numbers(expression)


@pytest.mark.parametrize("name", ["truncate", "accumulate"])
def test_full_batches_in_pieces_are_refused_around_what_takes_one_batch(name):
    expression = f"ema(loss_scale({name}(sgd)))"
    assert with_full_batches(expression, 1) == expression
    with pytest.raises(ValueError) as refusal:
        with_full_batches(expression, 3)
    told = str(refusal.value)
    assert told.startswith("batch_size=full reads the training split in 3 pieces")
    assert f"leave {name} out" in told and f"strategy={expression}" in told


def test_whatever_is_not_refused_stands_around_full_batches():
    """No order that the table refuses comes out under the name of a part the user never typed."""
    for name in STRATEGIES:
        try:
            text = with_full_batches(f"{name}(sgd)", 3)
        except ValueError as error:
            assert str(error).startswith("batch_size=full")
        else:
            assert "accumulate(" in text and len(resolve(text)) == 3


def test_nest_is_the_expression_of_the_short_form():
    assert nest([], "adamw") == "adamw"
    assert nest(parse_short("lookahead:5x0.5+sam"), "adamw") == "lookahead(sam(adamw), 5, 0.5)"
    assert nest([("accumulate", (1234567,))], "sgd") == "accumulate(sgd, 1234567)"
    assert names_and_numbers(nest(parse_short("diloco:4x20"), "sgd"))[0][1]["workers"] == 4


def test_the_number_of_workers():
    assert num_workers("ema(diloco(accumulate(sgd), 3))") == 3
    assert num_workers("local_sgd(sgd)") == 2
    assert num_workers("lookahead(sgd)") is None
    with pytest.raises(ValueError, match="setting: unknown part"):
        num_workers("nothing", "setting")


# The tables of names and of what is built name the same things.


def test_nothing_is_built_that_has_no_line_in_the_table():
    assert not (RULES.keys() | LOSSES.keys() | BUILDERS.keys()) - PARTS.keys()


@pytest.mark.parametrize("name", PARTS)
def test_every_part_can_be_built_with_its_numbers(name):
    part = PARTS[name]
    if part.level == OPTIMIZER:
        assert name in BUILDERS
        return
    table, inside = (LOSSES, "loss") if part.level == LOSS else (RULES, "inner")
    parameters = list(inspect.signature(table[name]).parameters)
    assert parameters == [inside, "run", *part.numbers]


@pytest.mark.parametrize("name", PARTS)
def test_every_line_of_the_table_says_what_it_is_and_who_says_so(name):
    part = PARTS[name]
    assert part.name == name and part.summary and part.formula and part.source
    for key, number in part.numbers.items():
        assert number.check(key, number.default) == number.default
