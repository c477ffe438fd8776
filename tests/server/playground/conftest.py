"""Headless Chromium and a server whose engine paints the boxes of captions."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.playground.pages import DESKTOP, connect, open_page
from tests.server.process import HANG, ServerProcess


@pytest.fixture(scope="package")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess("--embed-prompt", module="tests.server.playground.painting_server")
    yield process
    process.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"], timeout=HANG * 1000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """The playground. Script errors and blocked requests fail the test."""
    page = open_page(browser, viewport=DESKTOP)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    connect(page, server)
    yield page
    page.context.close()
    assert problems == []
