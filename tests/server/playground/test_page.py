"""The page with a text prompt: settings, previews, result, errors."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.server.access.test_api_keys import write_keys
from tests.server.playground.pages import colour, generate, open_builder, open_page
from tests.server.process import HANG, ServerProcess

Start = Callable[..., ServerProcess]


def test_a_prompt_becomes_an_image(page: Page) -> None:
    page.get_by_role("textbox", name="Prompt").fill("it's a cat")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Preset").select_option("V4_TURBO_12")
    generate(page)
    image = page.get_by_role("img", name="it's a cat", exact=True)
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") == 128
    assert colour(page) == (7, 64, 128)
    facts = page.locator("#list").inner_text()
    assert re.search(r"Seed\s+7\s", facts)
    assert "denoise" in facts
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 1)


def test_the_curl_command_reproduces_the_image(page: Page, tmp_path: Path) -> None:
    page.get_by_role("textbox", name="Prompt").fill('it\'s a "cat" & $HOME `x`')
    generate(page)
    line = page.locator("#curl").text_content() or ""
    assert json.loads(shlex.split(line)[-1])["prompt"] == 'it\'s a "cat" & $HOME `x`'
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=HANG)
    (file,) = tmp_path.iterdir()
    seed = int(re.findall(r"seed-(\d+)\.png", file.name)[0])
    assert Image.open(file).getpixel((0, 0)) == colour(page) == (seed % 256, 64, 128)


def test_previews_and_progress_show_while_it_runs(page: Page, server: ServerProcess) -> None:
    page.get_by_role("textbox", name="Prompt").fill("hold: a cat")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("img", name="Preview")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("Image 1 of 1: step 1 of 20")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    server.release()
    expect(page.get_by_role("status")).to_contain_text("Done in")
    expect(page.get_by_role("img", name="Preview")).to_have_count(0)


def test_stop_aborts_in_the_engine(page: Page, server: ServerProcess) -> None:
    page.get_by_role("textbox", name="Prompt").fill("hold: a cat")
    page.get_by_role("button", name="Generate").click()
    server.wait(running=1)
    page.get_by_role("button", name="Stop").click()
    server.wait(running=0)
    expect(page.get_by_role("status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_structured_caption(page: Page, server: ServerProcess) -> None:
    open_builder(page)
    caption = page.get_by_role("textbox", name="Caption (JSON object)")
    caption.fill("{broken")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("The caption is not valid JSON")
    caption.fill('{"subject": "a cat"}')
    generate(page)
    assert '"json_prompt":{"subject":"a cat"}' in (page.locator("#curl").text_content() or "")


def test_several_images_fill_the_gallery(page: Page) -> None:
    page.get_by_role("textbox", name="Prompt").fill("a cat")
    page.get_by_label("Seed").fill("20")
    page.get_by_label("Images").fill("3")
    generate(page)
    thumbs = page.locator("#gallery .pick")
    expect(thumbs).to_have_count(3)
    expect(page.locator("#picture img")).to_have_count(3)
    page.get_by_role("button", name="Open the image of seed 22").click()
    assert colour(page) == (22, 66, 128)
    thumbs.last.click()
    assert colour(page) == (20, 64, 128)
    page.get_by_role("button", name="Use this seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("20")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "seed-20.png"


def test_by_keyboard_alone(page: Page) -> None:
    page.keyboard.type("a cat")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("Done in")
    page.locator("#gallery .pick").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#gallery .pick").first).to_have_attribute("aria-current", "true")
    page.locator("#prompt").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("hold: a")
    for _ in range(8):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("step 1 of")
    page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Stopped.")


def test_sizes_are_labelled_with_their_own_ratio(page: Page) -> None:
    """The limits of the second model make other shapes of some."""
    published = {"min_size": 256, "max_size": 2048, "multiple_of": 16, "max_aspect_ratio": 6}
    narrow = {"min_size": 64, "max_size": 128, "multiple_of": 16, "max_aspect_ratio": 1.5}
    models = [
        {"limits": published, "default_size": "1024x1024"},
        {"limits": narrow, "default_size": "128x128"},
    ]
    listed = """async (models) => {
        const { sizes } = await import("/static/form/sizes.js");
        return models.map((model) => sizes(model).map(([, label]) => label).join(", "));
    }"""
    assert page.evaluate(listed, models) == [
        "1024x1024, 1184x880 (4:3), 880x1184 (3:4), 1360x768 (16:9), 768x1360 (9:16), 1248x832 (3:2), "
        "832x1248 (2:3), 2048x2048 (large)",
        "128x128, 128x112, 112x128, 128x96 (4:3), 96x128 (3:4)",
    ]


def test_on_a_phone(phone: Page) -> None:
    phone.get_by_role("textbox", name="Prompt").fill("a very-long-word-" * 20)
    generate(phone)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    small = phone.eval_on_selector_all(
        "button:not(.box), input:not([type=radio], [type=checkbox]), select",
        "all => all.filter(e => e.offsetHeight && e.offsetHeight < 40).length",
    )
    assert small == 0


def test_errors_of_the_server_are_shown(browser: Browser, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write_keys(file, {"name": "web", "key": "secret"})
    server = start("--api-keys-file", str(file))
    page = open_page(browser)
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text("No valid API key was sent.")
    page.get_by_label("API key").fill("secret")
    page.get_by_role("textbox", name="Prompt").fill("fail: a")
    expect(page.locator("#model")).to_have_text("fake-model")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_have_text("The model failed on this request.")
    assert "bad" in (page.locator("#status").get_attribute("class") or "")
    page.get_by_role("textbox", name="Prompt").fill("a cat")
    generate(page)
    assert "secret" not in (page.locator("#curl").text_content() or "")
    page.close()
