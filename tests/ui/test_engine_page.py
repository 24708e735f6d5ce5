"""The page Engine: figures known beforehand, and a sentence where there are none."""

import re

import pytest
from ui_stub import bodies, look_again, metrics_page, notices, words

from serving import client as serving_client
from ui import backend, settings
from ui.texts import TEXTS, text
from ui.views.engine import LENGTH

LANGUAGES = ("en", "zh")
GAUGES = {
    "generation_slots": 16,
    "generation_free_slots": 11,
    "generation_waiting": 3,
    "generation_cache_bytes": 16_800_000,
    "generation_prefix_cache_bytes": 2_100_000,
    "streams": 8,
}


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the time."""
    time = [100.0]
    monkeypatch.setattr(backend, "clock", lambda: time[0])
    return time


def counted(rows, computed, cached, prompts):
    return {
        "generation_rows": rows,
        "generation_padded_rows": computed,
        "cached_tokens": cached,
        "prompt_tokens": prompts,
    }


def figures(at):
    tile = r'<div class="sw-tile">.*?>(.*?)</div>.*?>(.*?)</div>.*?>(.*?)</div></div>'
    return [found[1:] for found in re.findall(tile, bodies(at))]


def heights(at):
    """Of each strip, its parts in the two newest columns."""
    strips = bodies(at).split('<div class="sw-strip"')[1:]
    columns = [re.split(r'<span class="sw-column">', strip)[1:] for strip in strips]
    assert all(len(found) == LENGTH for found in columns)
    return [[re.findall(r"height:([\d.]+)%", c) for c in found[-2:]] for found in columns]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_engine_does_at_the_moment(open_page, client, clock, language):
    counters = counted(rows=40, computed=80, cached=1_000, prompts=4_000)
    client.metrics_text = metrics_page(
        first={10_000: 2, 18_000: 0},
        next={2_000: 98},
        steps=(10, 40),
        counters=counters,
        gauges=GAUGES,
    )
    at = open_page("engine", language)
    assert [value for value, _ in figures(at)[:4]] == ["5", "3", "–", "–"]  # no rate of one look

    clock[0] += 2
    counters = counted(rows=58, computed=104, cached=1_234, prompts=4_567)
    client.metrics_text = metrics_page(
        first={10_000: 2, 18_000: 10},
        next={2_000: 298},
        wait={500: 10},
        steps=(14, 58),
        counters=counters,
        gauges=GAUGES | {"generation_free_slots": 10},
    )
    at = look_again(at)
    notes = [
        text(f"engine.{name}.note", language, n=n, percent="75.0%", total="4,567")
        for name, n in zip(
            ("slots", "waiting", "tokens", "rows", "cache", "prefix"),
            ("16", "", "", "", "", "1,234"),
            strict=True,
        )
    ]
    values = ["6", "3", "105", "4.5", "16.8 MB", "2.1 MB"]
    assert figures(at) == list(zip(values, notes, strict=True))
    # 210 tokens in 2 s; 5 + 3 texts, then 6 + 3, which are the most.
    assert heights(at) == [[[], ["100.0"]], [["55.6", "33.3"], ["66.7", "33.3"]]]

    rows = re.findall(r"<tr>((?:<td>.*?</td>)+)</tr>", bodies(at))
    found = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    ms = TEXTS["milliseconds"][language]
    told = TEXTS["engine.quantiles"][language]

    def quantiles(half, most):
        return told.format(half=ms.format(n=half), most=ms.format(n=most))

    # Since the page was opened ten first tokens between 10 and 18 ms, since the start twelve.
    assert found[0][2:] == [quantiles(14, 18), quantiles(13, 18)]
    assert found[1][2:] == [quantiles("1.0", "1.9")] * 2
    assert found[2][2:] == [quantiles("0.2", "0.5")] * 2
    assert [row[0] for row in found] == ["stories"] * 3
    assert not notices(at)


def test_browsers_that_look_at_once_share_a_look(open_page, client, clock):
    client.metrics_text = metrics_page(next={2_000: 98}, gauges=GAUGES)
    at = open_page("engine")
    client.metrics_text = metrics_page(next={2_000: 198}, gauges=GAUGES)
    at.run()  # within a second: the same look, of which no rate can be made
    assert figures(at)[2][0] == "–"


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_an_engine_streams_and_times_are_left(open_page, client, clock, language):
    client.metrics_text = metrics_page(first={10_000: 2}, gauges={"streams": 2})
    at = open_page("engine", language)
    assert notices(at) == [TEXTS["engine.by_signatures"][language]]
    assert [value for value, _ in figures(at)] == ["2", "–"]
    assert len(heights(at)) == 1 and words(at).count("|stories|") == 2  # no time of waiting
    assert TEXTS["engine.no_text"][language] not in words(at)


@pytest.mark.parametrize("language", LANGUAGES)
def test_before_the_first_text_the_page_says_who_asks_for_one(open_page, client, language):
    client.metrics_text = metrics_page(gauges=GAUGES)
    assert TEXTS["engine.no_text"][language] in words(open_page("engine", language))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("error", "key"),
    [
        (serving_client.MetricsOff("x"), "error.MetricsOff"),
        (serving_client.AccessDenied("x"), "error.AccessDenied"),
        (serving_client.RequestTimedOut("x"), "error.slow"),
        (ZeroDivisionError("x"), "error.unexpected"),
    ],
)
def test_what_is_in_the_way_is_a_sentence(open_page, client, monkeypatch, error, key, language):
    monkeypatch.setattr(client, "metrics", lambda: (_ for _ in ()).throw(error))
    at = open_page("engine", language)
    assert notices(at) == [text(key, language, url=settings.server())] and not figures(at)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("page", "key"),
    [
        ("# TYPE :tensorflow:serving:request_count counter\n", "engine.stock"),
        ("<!doctype html>\n<p>Hello</p>", "error.ServerFailed"),
    ],
)
def test_another_server_is_a_sentence(open_page, client, page, key, language):
    client.metrics_text = page
    at = open_page("engine", language)
    assert notices(at) == [text(key, language, url=settings.server())] and not figures(at)
