"""A caption that is drawn with the mouse, sent to the demo model: its colours are where the boxes are."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.server.playground.pages import colour, connect, open_page
from tests.server.playground.screenshot import SIZE, demo_server, draw_a_caption, take
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def demo() -> Iterator[ServerProcess]:
    server = demo_server()
    yield server
    server.close()


def test_the_demo_model_fills_the_box(browser: Browser, demo: ServerProcess) -> None:
    page = open_page(browser, viewport=SIZE, color_scheme="light")
    connect(page, demo)
    draw_a_caption(page)
    red, green, blue = colour(page, 0.75, 0.69)
    assert blue > 150 > max(red, green)
    red, green, blue = colour(page, 0.2, 0.2)
    assert min(red, green) > 180 > blue
    assert take(page).size == (1440, 1000)
    page.context.close()
