"""Edits in the playground: an image is brushed over, extended, compared, and asked for again by curl."""

import re
import shlex
import subprocess
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.server.edits.client import source_of
from tests.server.edits.pictures import BLUE, RED, encoded, halves
from tests.server.playground.pages import (
    choose_image,
    colour,
    connect,
    generate,
    place,
    touch,
)
from tests.server.process import HANG, ServerProcess

DROPPED = """([bytes, name, event, kind, where]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
    const options = { [name]: data, bubbles: true, cancelable: true };
    document.querySelector(where).dispatchEvent(new window[event](kind, options));
}"""
DROP = ("dataTransfer", "DragEvent", "drop")
PASTE = ("clipboardData", "ClipboardEvent", "paste")


def give(page: Page, image: bytes, how: tuple[str, str, str], where: str) -> None:
    """Drop or paste a PNG file."""
    page.evaluate(DROPPED, [list(image), *how, where])


def ask(page: Page, seed: int, prompt: str = "a cat") -> None:
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    generate(page)


def test_a_brushed_part_is_painted_and_the_rest_kept(
    page: Page, server: ServerProcess, tmp_path: Path
) -> None:
    """The curl command sends the same files and fields."""
    strength, mask = page.get_by_label("Strength"), page.get_by_label("Mask", exact=True)
    choose_image(page, encoded(halves(128, 128)), 'it\'s "a";.png')
    expect(strength).to_have_value("0.7")
    page.mouse.move(*place(mask, 0.25, 0.25))
    page.mouse.down()
    page.mouse.move(*place(mask, 0.3, 0.25))
    page.mouse.up()
    expect(page.locator("#mask-state")).to_have_text("2% of the image is painted, the rest is kept.")
    expect(strength).to_have_value("1")
    ask(page, 7, "it's a 'cat'")
    assert 0.02 < source_of(server)["painted"] < 0.08  # with the soft edge
    assert colour(page, 0.25, 0.27) == (7, 64, 128)
    assert colour(page, 0.75, 0.25) == RED
    assert colour(page, 0.75, 0.75) == BLUE
    page.get_by_label("Show the image before the edit").fill("40")
    assert colour(page, 0.25, 0.27) == RED
    expect(page.locator("#list")).to_contain_text(re.compile(r"Image\s*it's \"a\";\.png\s*Strength\s*1"))
    page.locator("#command summary").click()
    for button in page.get_by_role("button", name="Save ").all():
        with page.expect_download() as download:
            button.click()
        download.value.save_as(tmp_path / (button.text_content() or "").removeprefix("Save "))
    line = page.locator("#curl").text_content() or ""
    assert shlex.split(line)[-1] == "strength=1"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=HANG)
    again = Image.open(tmp_path / "seed-7.png").convert("RGB")
    assert [again.getpixel(at) for at in ((34, 32), (32, 96))] == [(7, 64, 128), RED]


def test_keys_paint_undo_and_clear(page: Page) -> None:
    state = page.locator("#mask-state")
    choose_image(page, encoded(halves()))
    page.get_by_label("Brush size").fill("25")
    page.get_by_label("Mask", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#mask-news")).to_have_text("Brush at 48% from the left, 50% from the top")
    page.keyboard.press("Space")
    expect(state).to_have_text("5% of the image is painted, the rest is kept.")
    for _ in range(10):
        page.keyboard.press("Shift+ArrowDown")
    expect(state).to_have_text("12% of the image is painted, the rest is kept.")
    for _ in range(10):
        page.keyboard.press("Control+z")
    expect(state).to_have_text("5% of the image is painted, the rest is kept.")
    page.get_by_role("button", name="Clear").press("Enter")
    expect(state).to_contain_text("The whole image is redrawn.")
    undo = page.get_by_role("button", name="Undo stroke")
    expect(undo).to_be_focused()
    undo.press("Enter")
    expect(state).to_have_text("5% of the image is painted, the rest is kept.")
    undo.press("Enter")
    expect(page.get_by_label("Mask", exact=True)).to_be_focused()


def test_dropped_pasted_and_removed(page: Page, server: ServerProcess) -> None:
    size, status = page.locator("#size"), page.get_by_role("status")
    give(page, encoded(halves(96, 64)), DROP, "#source-hint")
    expect(size).to_have_value("96x64")
    give(page, b"no image", DROP, "#source")
    expect(status).to_have_text("b.png is not an image that this browser can show.")
    give(page, encoded(halves(640, 320)), PASTE, "body")
    expect(size).to_have_value("192x96")
    page.get_by_label("Strength").fill("0.5")
    ask(page, 1)
    source = source_of(server)
    assert (source["strength"], source["painted"], source["size"]) == (0.5, None, (192, 96))
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(size).to_have_value("128x128")
    ask(page, 2)
    assert server.state()["requests"][-1].get("source") is None
    page.get_by_role("button", name="Draw from it").click()
    expect(status).to_have_text("seed-2.png is the image to draw from.")


def test_touch_paints_on_a_turned_and_extended_image(phone: Page) -> None:
    """A camera's photo, whose EXIF data says which side is up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    choose_image(phone, encoded(Image.new("RGB", (64, 96), RED), "jpeg", exif=exif.tobytes(), quality=95))
    expect(phone.locator("#size")).to_have_value("96x64")
    phone.get_by_text("Extend the image").click()
    phone.get_by_label("Above").fill("32")
    expect(phone.locator("#size")).to_have_value("96x96")
    expect(phone.get_by_label("Strength")).to_have_value("1")
    mask = phone.get_by_label("Mask", exact=True)
    touch(mask, (0.95, 0.1), (0.95, 0.9))
    ask(phone, 3)
    made = (3, 64, 128)
    assert [colour(phone, y, 0.5) == made for y in (0.1, 0.65, 0.97)] == [True, False, True]
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_an_error_of_a_margin_is_shown_at_its_field(page: Page) -> None:
    choose_image(page, encoded(halves()))
    page.get_by_text("Extend the image").click()
    page.evaluate("""async () => {
        const { showError } = await import("/static/form/errors.js");
        showError("expand.top", "too large");
    }""")
    expect(page.get_by_label("Above")).to_have_accessible_error_message("too large")


def test_the_history_and_the_file_remember_an_edit(page: Page, tmp_path: Path) -> None:
    choose_image(page, encoded(halves(128, 128)))
    page.get_by_label("Strength").fill("0.5")
    ask(page, 9)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "made.png")
    page.reload()
    page.locator("#gallery .pick").click()
    page.get_by_label("Show the image before the edit").fill("100")
    assert colour(page, 0.5, 0.25) == RED
    page.get_by_label("Image file").set_input_files(tmp_path / "made.png")
    expect(page.get_by_role("status")).to_have_text(
        "Settings and prompt restored. Choose the image that it was drawn from."
    )
    choose_image(page, encoded(halves(128, 128)))
    expect(page.get_by_label("Strength")).to_have_value("0.5")


def test_a_model_without_an_encoder_takes_no_image(page: Page, server: ServerProcess) -> None:
    models = server.http.get("/v1/models").json()
    models["data"][0]["edits"] = False
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    connect(page, server)
    expect(page.get_by_role("heading", name="Draw from an image")).to_be_hidden()
    give(page, encoded(halves()), DROP, "body")
    expect(page.get_by_role("status")).to_have_text("b.png has no settings of this server.")
