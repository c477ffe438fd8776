"""What the tests of the playground do with a page."""

import io
import json
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from tests.server.process import HANG, ServerProcess

DESKTOP = ViewportSize(width=1440, height=900)
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
PATIENCE = HANG * 1000  # milliseconds
expect.set_options(timeout=PATIENCE)

Box = tuple[int, int, int, int]  # top, left, bottom, right in thousandths


def open_page(browser: Browser, **options: Any) -> Page:
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def connect(page: Page, server: ServerProcess) -> None:
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text(server.http.get("/v1/models").json()["data"][0]["id"])


def generate(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("Done in")


def choose_image(page: Page, data: bytes, name: str = "a.png") -> None:
    """As the image to draw from."""
    file: Any = {"name": name, "mimeType": "image/png", "buffer": data}
    page.locator("#source-file").set_input_files(file)
    expect(page.get_by_role("status")).to_have_text(f"{name} is the image to draw from.")


def screenshot(target: Locator) -> Image.Image:
    return Image.open(io.BytesIO(target.screenshot())).convert("RGB")


def colour(page: Page, y: float = 0.5, x: float = 0.5) -> tuple[int, ...]:
    """The colour at a place of the image, as rendered on the screen; places are fractions of the sides."""
    shot = screenshot(page.locator("#picture img"))
    pixel = shot.getpixel((int(shot.width * x), int(shot.height * y)))
    assert isinstance(pixel, tuple)
    return pixel


def open_builder(page: Page) -> None:
    page.get_by_text("Caption", exact=True).click()
    expect(page.locator("#canvas")).to_be_visible()


def place(target: Locator, y: float, x: float) -> tuple[float, float]:
    """On the screen; `y` and `x` are fractions of the target's sides. Read it just before its use."""
    target.scroll_into_view_if_needed()
    room = target.bounding_box()
    assert room
    return room["x"] + x * room["width"], room["y"] + y * room["height"]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """On the canvas with the mouse, from and to a place (y, x) in thousandths of its sides."""
    for index, (y, x) in enumerate((start, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), end)):
        page.mouse.move(*place(page.locator("#canvas"), y / 1000, x / 1000))
        if index == 0:
            page.mouse.down()
    page.mouse.up()


def touch(target: Locator, *places: tuple[float, float]) -> None:
    """With a finger, from one place (y, x) to the next, in fractions of the target's sides."""
    screen = target.page.context.new_cdp_session(target.page)
    for index, (y, x) in enumerate(places):
        left, top = place(target, y, x)
        event = {"type": "touchMove" if index else "touchStart", "touchPoints": [{"x": left, "y": top}]}
        screen.send("Input.dispatchTouchEvent", event)
    screen.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def draw_box(page: Page, box: Box, description: str, colour: str | None = None) -> None:
    """Draw a box with the mouse and describe it."""
    drag(page, box[:2], box[2:])
    page.get_by_label("Description of the element").fill(description)
    if colour:
        page.locator("#element-palette").get_by_role("button", name="Add colour").click()
        page.get_by_label("Colour 1", exact=True).fill(colour)


def caption(page: Page) -> dict[str, Any]:
    """As the JSON panel has it."""
    value = json.loads(page.locator("#json").input_value())
    assert isinstance(value, dict)
    return value


def elements(page: Page) -> list[dict[str, Any]]:
    found = caption(page)["compositional_deconstruction"]["elements"]
    assert isinstance(found, list)
    return found
