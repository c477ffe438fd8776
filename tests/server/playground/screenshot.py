"""Take the screenshot of the README: `python -m tests.server.playground.screenshot`.

A caption is drawn with the mouse and sent to the demo model, as `test_demo_model.py` does.
"""

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.server.playground.pages import connect, draw_box, generate, open_builder, open_page
from tests.server.process import ServerProcess, until

OUTPUT = Path(__file__).parents[3] / "docs/images/playground.png"
SIZE = {"width": 1440, "height": 1000}


def demo_server() -> ServerProcess:
    """Ready, with the demo model."""
    server = ServerProcess("--model", "models/demo", "--log-level", "error", module="server")
    until(lambda: server.http.get("/readyz").status_code == 200)
    return server


def draw_a_caption(page: Page) -> None:
    """With the mouse; then generate its image."""
    open_builder(page)
    page.get_by_label("Description of the image").fill("a blue square on a yellow background")
    page.get_by_label("Background", exact=True).fill("yellow background")
    draw_box(page, (500, 440, 1000, 940), "blue square", "#1e46dc")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Preset").select_option("V4_TURBO_12")
    generate(page)


def take(page: Page) -> Image.Image:
    """In few colours, to keep the repository small."""
    page.mouse.move(0, 0)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    return shot.convert("RGB").quantize(128, dither=Image.Dither.NONE)


def main() -> None:
    server = demo_server()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = open_page(browser, viewport=SIZE, color_scheme="light")
            connect(page, server)
            draw_a_caption(page)
            take(page).save(OUTPUT, optimize=True)
    finally:
        server.close()
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
