"""Takes the pictures of the documents: python tests/end_to_end/screenshots.py --out docs/

Needs a running model server with the models sentiment, topics and stories, started with
--monitoring_config_file=deploy/kubernetes/monitoring.config, its engine ready, and running pages.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from chromium import HOW_TO_INSTALL, find_chromium, open_browser
from playwright.sync_api import Page, expect

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from serving.client import Client

SIZE = {"width": 1280, "height": 900}
LARGEST = 300_000  # bytes of one picture
NUM_CALLERS, WRITING_SECONDS = 26, 60  # of the picture of the engine

# File, path ("" is Sentiment, the first page), language, number of the example to click.
PICTURES = (
    ("sentiment.png", "", "en", 0),
    ("topics.png", "topics", "en", 0),
    ("generate.png", "generate", "en", 0),
    ("engine.png", "engine", "en", None),
    ("engine_zh.png", "engine", "zh", None),
    ("status.png", "status", "en", None),
    ("sentiment_zh.png", "", "zh", 0),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8501", help="the model server")
    parser.add_argument("--ui", default="http://127.0.0.1:8502", help="the pages")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the pictures")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        print(HOW_TO_INSTALL, file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with open_browser(program) as browser:
        if not browser.new_page().request.get(f"{options.server}/v1/models/sentiment").ok:
            print(f"No model sentiment at {options.server}; start a server.", file=sys.stderr)
            return 1
        for name, path, language, example in PICTURES:
            page = browser.new_page(viewport=SIZE)
            with writing(options.server) if path == "engine" else nullcontext():
                take(page, f"{options.ui}/{path}?language={language}", example, options.out / name)
            page.close()
    return 0


@contextmanager
def writing(server: str) -> Iterator[None]:
    """Callers who let it write one text after the other."""
    is_over = threading.Event()

    def call(number: int) -> None:
        generator = random.Random(number)
        prompts = ("Once there was a little fox", "The old dog looked at the sea and", "从前，")
        with Client(server) as client:
            while not is_over.wait(generator.random() / 2):
                length, seed = generator.randint(20, 220), generator.randrange(10_000)
                prompt = generator.choice(prompts)
                list(client.write("stories", prompt, max_tokens=length, seed=seed))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(NUM_CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def take(page: Page, url: str, example: int | None, path: Path) -> None:
    page.goto(url)
    expect(page.locator("h1")).to_be_visible(timeout=30_000)
    # A click while the page is still being laid out can hit the neighbour.
    expect(page.locator('[data-test-script-state="notRunning"]')).to_be_visible(timeout=30_000)
    page.wait_for_load_state("networkidle")
    if example is not None:
        page.locator(".st-key-examples button").nth(example).click()
        expect(page.locator(".sw-verdict, .sw-story")).to_be_visible(timeout=120_000)
        is_writing = page.locator(".st-key-generate-stop button")
        expect(is_writing).to_have_count(0, timeout=120_000)
    elif "/engine" in url:
        time.sleep(WRITING_SECONDS)
    else:
        page.get_by_role("tab").nth(2).click()
    page.mouse.move(0, 0)
    expect(page.locator('[data-testid="stStatusWidget"]')).to_have_count(0, timeout=30_000)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path, animations="disabled")
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes, more than {LARGEST}; simplify the page.")
    print(f"{path}  {size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
