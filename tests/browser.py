"""A real browser on MLflow's pages: what it asked for, what it complained of, and how the page looked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = Path(__file__).parent.parent / "build" / "screenshots"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_MS = 60_000
CLOSED = """
if (location.protocol.startsWith('http'))
  localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""
"""MLflow's assistant opens over a third of the first page that it sees."""

EXPECTED = ("/users/current", "ResizeObserver loop")
"""MLflow asks who is logged in, which a server without accounts cannot say; a layout may take two rounds."""


@pytest.fixture(scope="module")
def visiting():
    """Opens a window on an address, in a headless browser; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield partial(Visitor, browser)
        browser.close()


class Visitor:
    """One browser window on a server."""

    def __init__(self, browser, address):
        self.address = address
        self.page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.set_default_timeout(WAIT_MS)
        self.page.add_init_script(CLOSED)
        self.foreign, self.errors = [], []
        self.page.on("request", self._note_request)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self._note_error(str(error)))

    def _note_request(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)

    def _note_message(self, message):
        if message.type == "error":
            self._note_error(f"{message.text} {message.location.get('url', '')}")

    def _note_error(self, said):
        if not any(part in said for part in EXPECTED):
            self.errors.append(said)

    def open(self, fragment):
        """A page of MLflow's UI, from the start."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}/{fragment}")
        return self.page

    def keep(self, name):
        """A screenshot, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")
