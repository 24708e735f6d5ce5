"""A reader's visit: the real server, the real pages, a real browser, and nobody else."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from chromium import HOW_TO_INSTALL, find_chromium, open_browser
from playwright.sync_api import Browser, Page, expect
from programs import free_ports, running

from serving.client import Client, ClientError
from ui.texts import EXAMPLES, TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ROOT = Path(__file__).resolve().parents[2]
ANSWER = 120_000  # milliseconds for one answer of a model, and for a page to settle


@dataclass
class Site:
    """The two programs; `kill_server` ends the model server alone."""

    server: str
    pages: str
    server_process: subprocess.Popen

    def kill_server(self) -> None:
        self.server_process.kill()
        self.server_process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        if os.environ.get("STEPWISE_REQUIRE_BROWSER") == "1":
            pytest.fail(HOW_TO_INSTALL)
        pytest.skip(HOW_TO_INSTALL)
    with open_browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(trained_exports: Path) -> Iterator[Site]:
    rest, grpc, pages = free_ports(3)
    server_url, pages_url = f"http://127.0.0.1:{rest}", f"http://127.0.0.1:{pages}"
    serving = ["-m", "serving", "--exports", trained_exports, "--engine", "embedded"]
    serving += ["--rest_api_port", rest, "--port", grpc]
    serving += ["--generation-slots", 0]  # whose compiling takes a while
    serving += ["--monitoring_config_file", ROOT / "deploy/kubernetes/monitoring.config"]
    with (
        running(*serving) as server,
        running("-m", "ui", "--server", server_url, "--port", pages) as ui,
    ):
        with Client(server_url) as client:
            server.wait_until(lambda: len(_ready(client)) == 3)
        ui.wait_until(lambda: _answers(f"{pages_url}/_stcore/health"))
        yield Site(server_url, pages_url, server.process)


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """An English browser. Whatever it asks another host for fails the test."""
    opened = browser.new_page(locale="en-US", viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(ANSWER)
    expect.set_options(timeout=ANSWER)
    hosts = set()
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    opened.on("websocket", lambda socket: hosts.add(urlsplit(socket.url).hostname))
    yield opened
    opened.close()
    assert hosts - {None} == {"127.0.0.1"}  # None: data: and blob: addresses


def test_a_visit(page, site):
    with Client(site.server) as client:
        sentiments = list(client.classify("sentiment", ["x"])[0].scores)
        topics = list(client.classify("topics", ["x"])[0].scores)

    page.goto(site.pages)
    _settle(page)
    expect(page.locator(".sw-server")).to_contain_text("stories")

    # A sentence of one's own, with the button; in a fresh visit, with the keyboard.
    page.locator("textarea").fill("What a lovely day <b>**this**</b> is.")
    page.get_by_role("button", name=TEXTS["classify.run"]["en"]).click()
    _expect_bars(page, sentiments)
    page.reload()
    _settle(page)
    expect(page.locator(".sw-verdict")).to_have_count(0)
    page.locator("textarea").fill("Nothing worked.")
    page.keyboard.press("Control+Enter")
    _expect_bars(page, sentiments)

    # An example of the other page.
    _open(page, "topics", "en")
    page.get_by_role("button", name=EXAMPLES["topics"]["en"][1]).click()
    expect(page.locator("textarea")).to_have_value(EXAMPLES["topics"]["en"][1])
    _expect_bars(page, topics)

    # Two stories in English, the first once more with the same seed, then one in Chinese.
    _open(page, "generate", "en")
    stories = []
    for number in (0, 1, 0):
        example = EXAMPLES["generate"]["en"][number]
        page.get_by_role("button", name=example).click()
        stories.append(_expect_story(page, example, "en"))
    assert stories[0] == stories[2] != stories[1]

    page.get_by_text("中文", exact=True).click()
    expect(page.locator("h1")).to_have_text(TEXTS["nav.generate"]["zh"])
    _settle(page)
    page.get_by_role("button", name=EXAMPLES["generate"]["zh"][0]).click()
    _expect_story(page, EXAMPLES["generate"]["zh"][0], "zh")

    # What was counted of these four, without an engine.
    _open(page, "engine", "zh")
    expect(page.locator(".sw-notice")).to_have_text(TEXTS["engine.by_signatures"]["zh"])
    expect(page.locator(".sw-table td").nth(3)).to_contain_text("p95")

    # The language stays, also in the address.
    _open(page, "status", "zh")
    assert page.url.endswith("/status?language=zh")
    for model in ("sentiment", "topics", "stories"):
        expect(page.locator(".sw-model", has_text=model)).to_contain_text("可用")
    page.get_by_role("tab", name=TEXTS["status.curl"]["zh"]).first.click()
    expect(page.get_by_text(f"{site.server}/v1/models/").first).to_be_visible()

    # The server goes away: a sentence in the page without a click, and no traceback.
    _open(page, "sentiment", "zh")
    page.locator("textarea").fill("草稿")
    site.kill_server()
    sentence = TEXTS["error.ServerUnreachable"]["zh"].format(url=site.server)
    expect(page.locator(".sw-notice")).to_have_text(sentence)
    expect(page.locator(".sw-server")).to_contain_text(TEXTS["server.stopped"]["zh"])
    page.get_by_role("button", name=TEXTS["classify.run"]["zh"]).click()
    _settle(page)
    expect(page.locator(".sw-notice")).to_have_text(sentence)
    expect(page.locator("textarea")).to_have_value("草稿")
    expect(page.get_by_text("Traceback")).to_have_count(0)
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)


def _open(page: Page, name: str, language: str) -> None:
    page.get_by_role("link", name=TEXTS[f"nav.{name}"][language]).click()
    expect(page.locator("h1")).to_have_text(TEXTS[f"nav.{name}"][language])
    _settle(page)


def _settle(page: Page) -> None:
    """Waits until the script has run: a click while the page moves can hit a neighbour."""
    expect(page.locator('[data-test-script-state="notRunning"]')).to_be_visible()
    page.wait_for_load_state("networkidle")


def _expect_bars(page: Page, labels: list[str]) -> None:
    """The verdict is a label of the model, and every percentage is there, highest first."""
    expect(page.locator(".sw-verdict-label")).to_be_visible()
    assert page.locator(".sw-verdict-label").inner_text() in labels
    shown = page.locator(".sw-bars").first.locator(".sw-number").all_inner_texts()
    numbers = [float(number.strip("<>%")) for number in shown]
    assert len(numbers) == min(len(labels), 10)
    assert numbers == sorted(numbers, reverse=True)


def _expect_story(page: Page, prompt: str, language: str) -> str:
    """The prompt, what was added to it, and how it ended; returns the whole text."""
    expect(page.locator(".sw-prompt")).to_have_text(prompt)
    ending = page.locator(".sw-caption", has_text=TEXTS["finish.length"][language]).or_(
        page.locator(".sw-caption", has_text=TEXTS["finish.stop"][language])
    )
    expect(ending).to_be_visible()
    story = page.locator(".sw-story").inner_text()
    assert len(story) > len(prompt)
    return story


def _ready(client: Client) -> list[str]:
    try:
        return [model.name for model in client.models() if model.state == "AVAILABLE"]
    except ClientError:
        return []  # not listening yet


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url).status == 200
    except OSError:
        return False
