import math

import numpy as np
import pytest

from training.schedules import SCHEDULES, Plateau, check, cut_warmup, tabulate

# In a run of 110 updates with a warm-up of 10: the first value, the one half-way, the last.
POINTS = {
    "constant": ("constant(0.4)", 0.4, 0.4, 0.4),
    "step": ("step(0.8, factor=0.5, every=40)", 0.8, 0.4, 0.2),
    "exponential": ("exponential(1, 0.01)", 1.0, 0.1, 0.01),
    "linear": ("linear(8, 64)", 8.0, 36.0, 64.0),
    "polynomial": ("polynomial(1, 0.2, power=3)", 1.0, 0.3, 0.2),
    "inverse_sqrt": ("inverse_sqrt(2)", 2.0, 2 / 6**0.5, 2 / 11**0.5),
    "cosine": ("cosine(1, 0.1)", 1.0, 0.55, 0.1),
    # Cycles of 100 / 7 updates, twice and four times that.
    "cosine_restarts": (
        "cosine_restarts(1, 0.2)",
        1.0,
        0.2 + 0.4 * (1 + math.cos(math.pi * (50 - 300 / 7) / (400 / 7))),
        0.2,
    ),
    "one_cycle": ("one_cycle(0.2, 1, 0.02, rise=0.4)", 0.2, 0.8, 0.02),
    "warmup_stable_decay": ("warmup_stable_decay(2, 0.5, decay=0.75)", 2.0, 1.5, 0.5),
    "slanted_triangular": (
        "slanted_triangular(1, rise=0.25, ratio=10)",
        0.1,
        0.1 + 0.9 * 2 / 3,
        0.1,
    ),
    "plateau": ("plateau(0.3, factor=0.1)", 0.3, 0.3, 0.3),
}

# The integral over the updates after the warm-up, as a share of their number.
INTEGRALS = {
    "constant": ("constant(0.4)", 0.4),
    "step": ("step(0.8, factor=0.5, every=25000)", 0.8 * (1 + 0.5 + 0.25 + 0.125) / 4),
    "exponential": ("exponential(1, 0.01)", (1 - 0.01) / math.log(100)),
    "linear": ("linear(8, 64)", 36.0),
    "polynomial": ("polynomial(1, 0.2, power=3)", 0.2 + 0.8 / 4),
    "inverse_sqrt": ("inverse_sqrt(2, timescale=100000)", 4 * (2**0.5 - 1)),
    "cosine": ("cosine(1, 0.1)", 0.55),
    "cosine_restarts": ("cosine_restarts(1, 0.1, cycles=4, growth=1.5)", 0.55),
    "one_cycle": ("one_cycle(0.2, 1, 0.02, rise=0.4)", 0.8 * 0.6 + 0.2 * 0.11),
    "warmup_stable_decay": ("warmup_stable_decay(2, 0.5, decay=0.75)", 0.25 * 2 + 0.75 * 1.25),
    "slanted_triangular": ("slanted_triangular(1, rise=0.25, ratio=10)", 0.55),
    "plateau": ("plateau(0.3)", 0.3),
}


def with_numbers(expression, numbers):
    return f"{expression[:-1]}, {numbers})"


def test_every_schedule_is_measured():
    assert set(POINTS) == set(INTEGRALS) == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
class TestEach:
    def test_values_at_the_start_the_middle_and_the_end(self, name):
        expression, first, middle, last = POINTS[name]
        table = tabulate(with_numbers(expression, "warmup=10, warmup_start=0.05"), 110)
        assert table.dtype == np.float64 and table.shape == (111,)
        assert table[0] == pytest.approx(0.05)
        assert table[5] == pytest.approx((0.05 + first) / 2)
        assert table[9] == pytest.approx(0.05 + 0.9 * (first - 0.05))
        assert table[10] == pytest.approx(first, rel=1e-12)
        assert table[60] == pytest.approx(middle, rel=1e-12)
        assert table[110] == pytest.approx(last, rel=1e-12, abs=1e-12)

    def test_without_a_warm_up_it_starts_at_its_first_value(self, name):
        expression, first, *_ = POINTS[name]
        assert tabulate(expression, 100)[0] == pytest.approx(first)

    def test_it_stays_where_its_steps_end(self, name):
        expression, _, middle, last = POINTS[name]
        table = tabulate(with_numbers(expression, "warmup=10, steps=100"), 150)
        assert table[60] == pytest.approx(middle, rel=1e-12)
        np.testing.assert_allclose(table[110:], last, rtol=1e-12, atol=1e-12)

    def test_a_run_shorter_than_its_steps_goes_a_part_of_the_way(self, name):
        expression = with_numbers(POINTS[name][0], "warmup=10, steps=100")
        np.testing.assert_array_equal(tabulate(expression, 60), tabulate(expression, 110)[:61])

    def test_a_warm_up_takes_half_of_a_short_run_at_most(self, name):
        expression, first, *_ = POINTS[name]
        table = tabulate(with_numbers(expression, "warmup=1000"), 10)
        np.testing.assert_allclose(table[:6], np.arange(6) / 5 * first, rtol=1e-12)
        assert tabulate(with_numbers(expression, "warmup=10"), 1)[0] == pytest.approx(first)

    def test_its_integral_is_that_of_the_closed_form(self, name):
        expression, mean = INTEGRALS[name]
        table = tabulate(expression, 100_000)
        assert np.trapezoid(table) / 100_000 == pytest.approx(mean, rel=2e-5)

    def test_the_shortest_runs_are_finite(self, name):
        for num_updates in (1, 2, 3, 4):
            assert np.isfinite(tabulate(f"{name}(warmup=1)", num_updates)).all()

    def test_its_name_alone_is_a_schedule_with_a_line_about_it(self, name):
        check(name)
        assert SCHEDULES[name].description


def test_a_warm_up_that_is_cut_is_told_with_its_numbers():
    told = cut_warmup("cosine(end=0.1, warmup=100)", 61, "optimizer.schedule")
    assert told == (
        "the warm-up of optimizer.schedule=cosine(end=0.1, warmup=100) takes 30 updates in place "
        "of 100: half of the run's 61"
    )
    # It is so: the first value is reached there.
    assert np.argmax(tabulate("cosine(end=0.1, warmup=100)", 61)) == 30
    for expression, num_updates in (("cosine(warmup=30)", 61), ("linear(8, 64)", 1), (32, 1)):
        assert cut_warmup(expression, num_updates) is None


def test_a_number_stays():
    assert tabulate("32", 3).tolist() == tabulate(32, 3).tolist() == [32.0] * 4
    assert tabulate("-1e-3", 1).tolist() == [-1e-3] * 2


def test_steps_fall_after_whole_updates():
    assert tabulate("step(every=2, factor=0.5)", 5).tolist() == [1, 1, 0.5, 0.5, 0.25, 0.25]
    thirds = tabulate("step(factor=0.5)", 100)
    assert np.flatnonzero(np.diff(thirds)).tolist() == [33, 67]


def test_cosine_is_that_of_keras():
    import keras

    theirs = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=100, alpha=0.1, warmup_target=1.0, warmup_steps=10
    )
    table = tabulate("cosine(1, 0.1, warmup=10)", 110)
    np.testing.assert_allclose(table, [float(theirs(t)) for t in range(111)], atol=1e-6)


def test_restarts_are_those_of_keras_where_cycles_are_whole():
    import keras

    theirs = keras.optimizers.schedules.CosineDecayRestarts(1.0, 10, t_mul=2.0, alpha=0.1)
    table = tabulate("cosine_restarts(1, 0.1, cycles=3, growth=2)", 70)
    assert table[[0, 10, 30]].tolist() == [1.0, 1.0, 1.0]
    inside = [t for t in range(70) if t not in (10, 30)]  # where float32 may fall on either side
    np.testing.assert_allclose(table[inside], [float(theirs(t)) for t in inside], atol=1e-5)


@pytest.mark.parametrize(
    ("growth", "edges"),
    [("1", [0, 7, 14, 21]), ("1.4", [0, 25, 60, 109]), ("3.3", [0, 100, 430, 1519])],
)
def test_a_cycle_starts_at_its_update_whatever_the_rounding(growth, edges):
    table = tabulate(f"cosine_restarts(cycles=3, growth={growth})", edges[-1])
    np.testing.assert_allclose(table[edges], [1.0, 1.0, 1.0, 0.0], atol=1e-9)


def test_the_inverse_square_root_is_the_transformers():
    """Vaswani et al., 2017, eq. 3, over its highest value."""
    warmup, steps = 40, np.arange(1, 401)
    rate = np.minimum(steps**-0.5, steps * warmup**-1.5) * warmup**0.5
    np.testing.assert_allclose(tabulate("inverse_sqrt(warmup=40)", 400)[1:], rate, rtol=1e-12)


def test_the_slanted_triangle_is_that_of_the_paper():
    """Howard & Ruder, 2018, eq. 3, with T cut_frac whole."""
    T, cut_frac, ratio = 200, 0.1, 32
    cut, t = math.floor(T * cut_frac), np.arange(T + 1)
    p = np.where(t < cut, t / cut, 1 - (t - cut) / (cut * (1 / cut_frac - 1)))
    expected = 0.01 * (1 + p * (ratio - 1)) / ratio
    np.testing.assert_allclose(tabulate("slanted_triangular(0.01)", T), expected, rtol=1e-12)


def test_a_resumed_run_reads_the_same_values():
    table = tabulate("cosine(warmup=7)", 50)
    again = tabulate("cosine(warmup=7)", 50)
    assert [again[min(t, 50)] for t in range(23, 60)] == [*table[23:], *[table[50]] * 9]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("cosin", "a number or one of constant, .*plateau. Did you mean cosine?.* 'cosin'"),
        ("nonsense", "a number or one of constant, step, "),
        ("none", "start of constant must be a number. Received: None"),
        ("cosine(1, warm=3)", "takes start, end, warmup, .*Did you mean warmup?.* 'warm' in"),
        ("cosine(1, start=1)", "cosine takes start once"),
        ("cosine(1, 0, 3, 0, 9, 9)", "5 numbers. Received: 6"),
        ("cosine(warmup=2.5)", "warmup of cosine must be a whole number of at least 0. .* 2.5"),
        ("cosine(warmup=none)", "warmup of cosine must be a whole number"),
        ("cosine(warmup=-1)", "of at least 0. Received: -1"),
        ("cosine(steps=0)", "steps of cosine must be a whole number of at least 1, or none"),
        ("cosine(linear)", "start of cosine must be a number. Received: linear"),
        ("cosine(true)", "start of cosine must be a number. Received: True"),
        ("exponential(1, 0)", "end of exponential must be a number above 0. Received: 0"),
        ("step(every=0)", "every of step must be a whole number of at least 1, or none"),
        ("one_cycle(rise=0.6)", "rise of one_cycle must be a number above 0 of at most 0.5"),
        ("plateau(patience=0)", "patience of plateau must be a whole number of at least 1"),
        ("cosine(", "never closed"),
        ("", "names, numbers"),
    ],
)
def test_mistakes_are_refused_by_name_without_running(expression, message):
    for read in (check, Plateau.from_expression):
        with pytest.raises(ValueError, match=f"^optimizer.schedule.*{message}"):
            read(expression, "optimizer.schedule")
    with pytest.raises(ValueError, match=f"^batch_size.*{message}"):
        tabulate(expression, 10, "batch_size")


def test_whole_numbers_may_be_written_as_powers():
    assert tabulate("cosine(warmup=1e1, steps=1e2)", 110)[10] == 1.0


@pytest.mark.parametrize(
    "expression", ["linear(0, 1.5)", "constant(-0.1)", "one_cycle(0, 2)", "1.01"]
)
def test_values_may_be_bounded(expression):
    with pytest.raises(ValueError, match="^model.dropout"):
        check(expression, "model.dropout", least=0, most=1)


def test_a_bound_counts_the_warm_up_only_when_there_is_one():
    check("linear(8, 64)", "batch_size", least=1)
    with pytest.raises(ValueError, match=r"from 1 to inf. Received: warmup_start=0 in 'linear"):
        check("linear(8, 64, warmup=10)", "batch_size", least=1)
    check("linear(8, 64, warmup=10, warmup_start=1)", "batch_size", least=1)


def test_values_beyond_the_range_of_numbers_are_refused():
    with pytest.raises(ValueError, match="share is not finite any more at update 1024"):
        tabulate("step(factor=2, every=1)", 2000, "share")
    with pytest.raises(ValueError, match="num_updates=0"):
        tabulate("cosine", 0)


# Plateau ------------------------------------------------------------------------------------------


def test_a_plateau_lowers_after_its_patience_and_counts_anew():
    plateau = Plateau(factor=0.5, patience=2)
    scores = [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert [plateau.observe(score) for score in scores] == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
    ]


def test_a_plateau_goes_no_lower_than_told_and_asks_for_a_real_change():
    plateau = Plateau.from_expression("plateau(2, 0.1, patience=1, min_change=0.05, least=0.3)")
    assert [plateau.observe(score) for score in (0.5, 0.54, 0.56, 0.56)] == [1, 0.3, 0.3, 0.3]
    assert plateau.best == 0.56


def test_a_score_that_is_not_a_number_is_no_progress():
    plateau = Plateau(factor=0.5, patience=1)
    assert plateau.observe(math.nan) == 0.5
    assert plateau.best == -math.inf


def test_a_plateau_goes_on_from_its_three_numbers():
    scores = np.random.default_rng(0).normal(size=30).cumsum()
    whole, first = Plateau(0.5, 2), Plateau(0.5, 2)
    expected = [whole.observe(score) for score in scores]
    found = [first.observe(score) for score in scores[:13]]
    second = Plateau(
        0.5, 2, multiplier=first.multiplier, num_stale=first.num_stale, best=first.best
    )
    found += [second.observe(score) for score in scores[13:]]
    assert found == expected and min(found) < 1


def test_other_schedules_ask_validation_nothing():
    assert Plateau.from_expression("cosine") is None
    assert Plateau.from_expression("plateau") == Plateau(factor=0.5, patience=3)
    assert (tabulate("plateau(0.3, patience=1)", 9) == 0.3).all()
