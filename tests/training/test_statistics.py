"""Verdicts over seeds: known values, honest error rates, and words for what cannot be tested."""

import numpy as np
import pytest
from scipy import stats

from training.statistics import (
    BETTER,
    NO_DIFFERENCE,
    REFERENCE,
    WORSE,
    bootstrap_interval,
    compare_scores,
    holm,
    paired_difference,
)


def by_seed(values):
    return dict(enumerate(values))


def test_a_paired_difference_has_the_known_t_test():
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641 with 2 degrees of freedom,
    # p = 1 - t / sqrt(t^2 + 2), interval 2 -+ 4.302653 / sqrt(3).
    difference = paired_difference(by_seed([1.0, 2.0, 3.0]))
    assert difference.mean == 2
    assert difference.p_value == pytest.approx(1 - np.sqrt(12 / 14))
    assert difference.student.low == pytest.approx(2 - 4.302652730 / np.sqrt(3))
    assert difference.student.high == pytest.approx(2 + 4.302652730 / np.sqrt(3))
    # Of the 27 equally likely resamples one is all 1, one all 3: the 2.5 % quantile is 1.
    assert (difference.bootstrap.low, difference.bootstrap.high) == (1.0, 3.0)


def test_a_paired_difference_agrees_with_the_test_of_two_samples():
    a, b = np.random.default_rng(0).normal(size=(2, 8))
    difference = paired_difference(by_seed(a - b))
    assert difference.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_the_bootstrap_is_repeatable_and_close_to_the_normal_interval_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


@pytest.mark.parametrize(("num_values", "low", "high"), [(3, 0.70, 0.82), (10, 0.86, 0.93)])
def test_the_bootstrap_covers_what_its_docstring_says(num_values, low, high):
    draws = np.random.default_rng(2).normal(size=(1500, num_values))
    intervals = [bootstrap_interval(row, num_resamples=400) for row in draws]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert low < covered < high


def test_the_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_clear_difference_is_found_in_either_direction():
    scores = {
        "adamw": by_seed([0.80, 0.81, 0.79]),
        "sam": by_seed([0.851, 0.858, 0.842]),
        "sgd": by_seed([0.702, 0.707, 0.690]),
        "lookahead": by_seed([0.80, 0.82, 0.78]),
    }
    verdicts = [r.verdict for r in compare_scores(scores, higher_is_better=True)]
    assert verdicts == [REFERENCE, BETTER, WORSE, NO_DIFFERENCE]
    as_losses = [r.verdict for r in compare_scores(scores, higher_is_better=False)]
    assert as_losses == [REFERENCE, WORSE, BETTER, NO_DIFFERENCE]


def test_comparing_is_symmetric():
    a, b = np.random.default_rng(3).normal(size=(2, 5))
    forth = compare_scores({"a": by_seed(a), "b": by_seed(b)}, higher_is_better=True)[1]
    back = compare_scores({"b": by_seed(b), "a": by_seed(a)}, higher_is_better=True)[1]
    assert forth.difference.mean == -back.difference.mean
    assert forth.difference.p_value == back.difference.p_value
    assert forth.difference.student.low == pytest.approx(-back.difference.student.high)


def test_pairs_remove_what_seeds_have_in_common():
    """Seeds differ by far more than the two ways do; unpaired, nothing would be found."""
    first = np.array([0.60, 0.75, 0.90])
    scores = {"a": by_seed(first), "b": by_seed(first + [0.010, 0.011, 0.012])}
    assert compare_scores(scores, higher_is_better=True)[1].verdict == BETTER
    assert stats.ttest_ind(first, list(scores["b"].values())).pvalue > 0.9


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_without_a_difference_one_in_twenty_verdicts_is_wrong(num_seeds):
    draws = np.random.default_rng(4).normal(size=(2000, 2, num_seeds))
    wrong = 0
    for a, b in draws:
        scores = {"a": by_seed(a), "b": by_seed(b)}
        result = compare_scores(scores, higher_is_better=True, num_resamples=2)[1]
        interval = result.difference.student
        assert (result.verdict != NO_DIFFERENCE) == (interval.low > 0 or interval.high < 0)
        wrong += result.verdict != NO_DIFFERENCE
    assert 0.035 < wrong / len(draws) < 0.065  # 3 standard errors around 0.05


def test_with_five_comparisons_one_table_in_twenty_is_wrong_not_one_in_five():
    draws = np.random.default_rng(5).normal(size=(1000, 6, 4))
    wrong, uncorrected = 0, 0
    for table in draws:
        scores = {f"entry {i}": by_seed(row) for i, row in enumerate(table)}
        results = compare_scores(scores, higher_is_better=True, num_resamples=2)[1:]
        wrong += any(r.verdict != NO_DIFFERENCE for r in results)
        uncorrected += any(r.difference.p_value < 0.05 for r in results)
    assert wrong / len(draws) < 0.065
    assert uncorrected / len(draws) > 0.1


def test_divergence_is_a_verdict_of_its_own():
    scores = {
        "adamw": by_seed([0.8, 0.81, 0.79]),
        "sgd": {0: None, 1: 0.9, 2: None},
        "sam": by_seed([0.9, 0.91, 0.9]),
    }
    _, sgd, sam = compare_scores(scores, higher_is_better=True)
    assert sgd.verdict == "diverged (2 of 3)"
    assert (sgd.num_diverged, sgd.mean, sgd.difference) == (2, 0.9, None)
    assert sam.verdict == BETTER
    # sgd took no part in the correction.
    assert sam.difference.holm_p_value == sam.difference.p_value


def test_a_diverged_first_entry_leaves_nothing_to_compare_with():
    scores = {"sgd": {0: None, 1: 0.8}, "adamw": {0: 0.8, 1: 0.9}}
    first, second = compare_scores(scores, higher_is_better=True)
    assert first.verdict == "diverged (1 of 2)"
    assert second.verdict == "no verdict: the first entry diverged"
    assert second.mean == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ({0: 0.8}, {0: 0.9}, "no verdict: fewer than two seeds in common"),
        ({0: 0.8, 1: 0.7}, {2: 0.9, 3: 0.9}, "no verdict: fewer than two seeds in common"),
        ({0: 0.8, 1: 0.7}, {}, "no verdict: no run yet"),
        # 0.1 in both, but for the rounding of binary fractions.
        ({0: 0.8, 1: 0.7}, {0: 0.9, 1: 0.8}, "no verdict: the same difference in every seed"),
        ({0: 0.8, 1: 0.7}, {0: 0.8, 1: 0.7}, NO_DIFFERENCE),
    ],
)
def test_what_cannot_be_tested_says_so(first, second, verdict):
    results = compare_scores({"a": first, "b": second}, higher_is_better=True)
    assert results[1].verdict == verdict


def test_only_shared_seeds_are_paired():
    scores = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 2.5, 2: 3.6}}
    difference = compare_scores(scores, higher_is_better=True)[1].difference
    assert difference.by_seed == pytest.approx({1: 0.5, 2: 0.6})


def test_no_entry_is_an_error():
    with pytest.raises(ValueError, match="at least one entry"):
        compare_scores({}, higher_is_better=True)
