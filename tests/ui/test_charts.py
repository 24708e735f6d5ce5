import re

import pytest

from ui import charts


def _labels(html: str) -> list[str]:
    return re.findall(r'<span class="sw-label">(.*?)</span>', html)


def test_bars_are_sorted_by_probability_and_carry_it_as_width_and_number():
    html = charts.bars({"a": 0.2, "b": 0.7, "c": 0.1}, "more")
    assert _labels(html) == ["b", "a", "c"]
    assert re.findall(r"width:([\d.]+)%", html) == ["70.00", "20.00", "10.00"]
    assert re.findall(r'<span class="sw-number">(.*?)</span>', html) == ["70.0%", "20.0%", "10.0%"]


def test_thirty_labels_are_all_there_the_unlikely_ones_folded_away():
    scores = {f"label {n}": (n + 1) / 465 for n in range(30)}
    html = charts.bars(scores, "20 more")
    shown, folded = html.split("<summary>20 more</summary>")
    assert _labels(shown) == [f"label {n}" for n in range(29, 19, -1)]
    assert _labels(folded) == [f"label {n}" for n in range(19, -1, -1)]


def test_ten_labels_need_no_fold():
    assert "<details" not in charts.bars({str(n): 0.1 for n in range(10)}, "more")


def test_labels_are_text_not_markup():
    label = '<script>alert(1)</script> **b** $x$ :smile: "&'
    for html in (charts.bars({label: 1.0}, "more"), charts.verdict(label, 1.0)):
        assert "<script>" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt; **b** $x$ :smile: &quot;&amp;" in html


def test_a_score_that_is_no_number_comes_last_without_a_bar():
    html = charts.bars({"broken": float("nan"), "good": 0.3}, "more")
    assert _labels(html) == ["good", "broken"]
    assert "width:0.00%" in html and "–" in html


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.97345, "97.3%"), (0.0002, "<0.1%"), (0.0, "0.0%"), (0.99996, ">99.9%"), (1.0, "100.0%")],
)
def test_percent_never_rounds_to_certainty(probability, expected):
    assert charts.percent(probability) == expected
