"""Headless Chromium, with a tab for each device, and a server whose engine paints the boxes of captions."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.playground.pages import DESKTOP, PHONE, connect, open_page
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


@pytest.fixture(scope="package")
def desktop_tab(browser: Browser) -> Iterator[Page]:
    """A new tab takes a second of a processor, a page in an old one less than half."""
    tab = open_page(browser, viewport=DESKTOP)
    yield tab
    tab.context.close()


@pytest.fixture(scope="package")
def phone_tab(browser: Browser) -> Iterator[Page]:
    tab = open_page(browser, **PHONE)
    yield tab
    tab.context.close()


@pytest.fixture
def page(desktop_tab: Page, server: ServerProcess) -> Iterator[Page]:
    """The playground. Script errors and blocked requests fail the test."""
    yield from _opened(desktop_tab, server)


@pytest.fixture
def phone(phone_tab: Page, server: ServerProcess) -> Iterator[Page]:
    """The same on a phone."""
    yield from _opened(phone_tab, server)


def _opened(tab: Page, server: ServerProcess) -> Iterator[Page]:
    """As in a new tab: nothing is left of earlier tests."""
    problems: list[str] = []

    def note(problem: object) -> None:
        if getattr(problem, "type", "error") == "error":
            problems.append(str(problem))

    storage = tab.context.new_cdp_session(tab)
    storage.send("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "all"})
    tab.on("pageerror", note)
    tab.on("console", note)
    connect(tab, server)
    yield tab
    tab.remove_listener("pageerror", note)
    tab.remove_listener("console", note)
    tab.unroute_all()
    tab.emulate_media(color_scheme="null")
    tab.goto("about:blank")  # ends its requests
    assert problems == []
