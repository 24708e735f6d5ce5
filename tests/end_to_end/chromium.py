"""Finds a Chromium on this machine and starts it so that it speaks to nobody by itself."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

HOW_TO_INSTALL = (
    "No Chromium found. Install one (Debian: apt-get install chromium; anywhere: "
    "python -m playwright install chromium), or name its program in STEPWISE_CHROMIUM."
)

ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses its sandbox to root, as in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Path of the program: the one named in STEPWISE_CHROMIUM, on the PATH, or Playwright's own."""
    named = os.environ.get("STEPWISE_CHROMIUM")
    if named:
        return shutil.which(named)
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


@contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()
