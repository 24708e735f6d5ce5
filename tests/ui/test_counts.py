"""What is read out of the metrics' page, with the server's own page and with known figures."""

import pytest
from ui_stub import metrics_page

from serving import metrics
from ui.counts import FIRST_TOKEN, NEXT_TOKEN, WAIT_FOR_READING, Counts, History, Rates


def test_the_server_s_own_page_is_understood():
    before = Counts.of(metrics.page(), 10.0)
    metrics.observe_first_token('a "b"', 20e-6)
    metrics.observe_next_tokens('a "b"', 40e-6, 7)
    metrics.observe_admission('a "b"', 5e-6, num_cached=16)
    metrics.observe_generation('a "b"', rows=3, padded_rows=4)
    metrics.observe_generation('a "b"', rows=6, padded_rows=8)
    metrics.count_tokens('a "b"', 30, 8)
    metrics.watch("/stepwise/serving/streams", lambda: 5)
    after = Counts.of(metrics.page(), 14.0)
    assert after.is_ours and 'a "b"' in after.models
    assert Rates.between(before, after) == Rates(tokens=2.0, rows=4.5, used=0.75)
    assert after.total("streams") == 5
    assert after.total("cached_tokens") - before.total("cached_tokens") == 16
    assert after.total("prompt_tokens") - before.total("prompt_tokens") == 30
    assert 18 < after.quantile(FIRST_TOKEN, 'a "b"', 0.5) < 32.4  # the bucket of 20 us
    assert after.quantile(NEXT_TOKEN, 'a "b"', 1.0) == pytest.approx(58.32, abs=0.01)
    assert after.quantile(WAIT_FOR_READING, 'a "b"', 0.5) == 5  # half way to the first limit, 10


def test_quantiles_are_linear_within_a_bucket():
    first = Counts.of(metrics_page(first={10: 4, 30: 4}), 0.0)
    assert first.quantile(FIRST_TOKEN, "stories", 0.25) == 5
    assert first.quantile(FIRST_TOKEN, "stories", 0.5) == 10
    assert first.quantile(FIRST_TOKEN, "stories", 0.95) == pytest.approx(28)
    # What was counted earlier is left out; what is above every limit is told as the last one.
    later = Counts.of(metrics_page(first={10: 4, 30: 14, float("inf"): 1}), 2.0)
    assert later.quantile(FIRST_TOKEN, "stories", 0.5, since=first) == pytest.approx(21)
    assert later.quantile(FIRST_TOKEN, "stories", 0.99, since=first) == 30
    assert later.quantile(FIRST_TOKEN, "stories", 0.5, since=later) is None
    assert later.quantile(FIRST_TOKEN, "other", 0.5) is None


def test_a_stock_page_is_none_of_ours():
    page = "# TYPE :tensorflow:serving:request_count counter\n"
    page += ':tensorflow:serving:request_count{model_name="m",status="OK"} 3\n'
    found = Counts.of(page, 0.0)
    assert not found.is_ours and not found.values


def test_another_program_s_page_is_no_metrics():
    with pytest.raises(ValueError):
        Counts.of("<!doctype html>\n<p>Hello</p>", 0.0)


def test_history_is_of_one_server_and_one_visit():
    def look(at, tokens):
        return Counts.of(metrics_page(next={30: tokens}), at)

    history = History(length=3, patience=10)
    for at, tokens in ((0, 100), (2, 110), (2, 110), (4, 150), (6, 150), (8, 160)):
        history.add(look(at, tokens))
    assert [rates.tokens for rates in history.rates] == [20, 0, 5]
    assert [counts.at for counts in history.looks] == [4, 6, 8] and history.first.at == 0
    history.add(look(10, 3))  # it was started again
    assert history.first.at == 10 and len(history.looks) == 1 and not history.rates
    history.add(look(12, 5))
    history.add(look(22.5, 5))  # somebody looked at another page
    assert history.first.at == 22.5 and not history.rates
