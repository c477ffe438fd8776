"""The caption builder: boxes by mouse, touch and keys; fields and JSON; faults at their element."""

import json
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.server.playground.pages import (
    caption,
    colour,
    drag,
    draw_box,
    elements,
    generate,
    open_builder,
    screenshot,
    touch,
)
from tests.server.process import ServerProcess

RED, GREEN, BLUE = "#E00000", "#00A000", "#0000E0"


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_three_boxes_by_mouse_become_an_image(page: Page, server: ServerProcess) -> None:
    open_builder(page)
    page.get_by_label("Background", exact=True).fill("white")
    draw_box(page, (100, 100, 400, 400), "a red block", RED)
    draw_box(page, (100, 600, 400, 900), "a green block", GREEN)
    draw_box(page, (600, 200, 900, 800), "a blue block", BLUE)
    assert [each["bbox"] for each in elements(page)] == [
        [100, 100, 400, 400],
        [100, 600, 400, 900],
        [600, 200, 900, 800],
    ]
    expect(page.locator("#json-state")).to_have_text("Valid")
    generate(page)
    assert colour(page, 0.25, 0.25) == rgb(RED)
    assert colour(page, 0.25, 0.75) == rgb(GREEN)
    assert colour(page, 0.75, 0.5) == rgb(BLUE)
    assert colour(page, 0.5, 0.1) == (255, 255, 255)
    drawn = json.loads(server.http.get("/_fake/drawn").json()[-1])
    assert drawn == caption(page)


def test_a_box_is_moved_resized_and_restored(page: Page) -> None:
    open_builder(page)
    drag(page, (100, 100), (300, 300))
    drag(page, (200, 200), (500, 400))
    assert elements(page)[0]["bbox"] == [400, 300, 600, 500]
    drag(page, (600, 500), (800, 900))
    assert elements(page)[0]["bbox"] == [400, 300, 800, 900]
    drag(page, (600, 600), (999, 999))
    assert elements(page)[0]["bbox"] == [600, 400, 1000, 1000]
    for expected in ([400, 300, 800, 900], [400, 300, 600, 500], [100, 100, 300, 300]):
        page.get_by_role("button", name="Undo").click()
        assert elements(page)[0]["bbox"] == expected
    drag(page, (700, 700), (705, 705))
    assert len(elements(page)) == 1, "a click draws no box"


def test_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#canvas")).to_be_visible()
    page.get_by_role("button", name="Add object").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("a red square")
    box = page.get_by_role("button", name="Box 1: a red square")
    box.focus()
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown", "Control+ArrowLeft"):
        page.keyboard.press(key)
    assert elements(page)[0]["bbox"] == [340, 339, 650, 649]
    expect(page.locator("#canvas-news")).to_have_text("Left 33.9%, top 34%, width 31%, height 31%")
    page.keyboard.press("Enter")
    page.keyboard.press("End")
    page.keyboard.type("!")
    assert elements(page)[0]["desc"] == "a red square!"
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("Done in")
    page.get_by_role("button", name="Box 1").focus()
    page.keyboard.press("Delete")
    assert elements(page) == []
    expect(page.get_by_role("button", name="Add object")).to_be_focused()


def test_touch_draws_a_box(phone: Page) -> None:
    open_builder(phone)
    touch(phone.locator("#canvas"), (0.2, 0.2), (0.5, 0.5), (0.8, 0.8))
    assert elements(phone)[0]["bbox"] == [200, 200, 800, 800]
    phone.get_by_label("Start from a template").select_option("Poster")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_nothing_moves_when_the_estimate_arrives(phone: Page) -> None:
    held: list[Route] = []
    phone.route("**/estimate", lambda route: held.append(route))
    with phone.expect_request("**/estimate"):
        open_builder(phone)
    before = phone.locator("#canvas").bounding_box()
    held[-1].continue_()
    expect(phone.locator("#estimate")).to_contain_text("Takes about")
    assert phone.locator("#canvas").bounding_box() == before


def test_json_and_builder_follow_each_other(page: Page) -> None:
    open_builder(page)
    text = page.get_by_label("Caption (JSON object)")
    element = {"type": "obj", "bbox": [0, 0, 500, 500], "desc": "a cat", "mood": "calm"}
    text.fill(json.dumps({"compositional_deconstruction": {"background": "sky", "elements": [element]}}))
    expect(page.get_by_role("button", name="Box 1: a cat")).to_be_visible()
    expect(page.get_by_label("Background", exact=True)).to_have_value("sky")
    text.fill("{broken")
    expect(page.locator("#json-state")).to_contain_text("Not valid JSON")
    expect(page.get_by_role("button", name="Box 1: a cat")).to_be_visible()
    page.locator("#elements .pick").click()
    page.get_by_label("Description of the element").fill("a dog")
    assert elements(page) == [{**element, "desc": "a dog"}], "an edit replaces what is not valid"
    page.get_by_label("Right", exact=True).fill("700")
    page.get_by_label("Right", exact=True).press("Enter")
    page.locator("#inspector").get_by_text("Text", exact=True).click()
    page.get_by_label("Text in the image").fill("WOOF")
    assert list(elements(page)[0]) == ["type", "bbox", "text", "desc", "mood"]
    assert elements(page)[0]["bbox"] == [0, 0, 500, 700]
    assert elements(page)[0]["text"] == "WOOF"


def test_an_answer_of_the_validation_leaves_the_text_as_it_is_typed(page: Page) -> None:
    held: list[Route] = []
    page.route("**/validate", lambda route: held.append(route))
    open_builder(page)
    text = page.get_by_label("Caption (JSON object)")
    with page.expect_request("**/validate"):
        text.fill("{}")
    text.fill("{broken")
    with page.expect_response("**/validate"):
        held[-1].continue_()
    expect(page.locator("#json-faults li")).not_to_have_count(0)
    expect(page.locator("#json-state")).to_contain_text("Not valid JSON")
    expect(text).to_have_value("{broken")
    page.unroute("**/validate")


def test_any_json_object_is_shown(page: Page) -> None:
    """The builder reads what people paste, whatever its types."""
    open_builder(page)
    text = page.get_by_label("Caption (JSON object)")
    for value in (
        {"compositional_deconstruction": 1, "style_description": []},
        {"compositional_deconstruction": {"elements": {"a": 1}, "background": ["x"]}},
        {"compositional_deconstruction": {"elements": [1, None, {"bbox": "no", "color_palette": 5}]}},
        {"style_description": {"photo": 1, "color_palette": [1, "red"]}, "high_level_description": {}},
    ):
        text.fill(json.dumps(value))
        assert caption(page) == value
    page.get_by_role("button", name="Add object").click()
    assert len(elements(page)) == 1


def test_faults_are_at_their_element(page: Page) -> None:
    open_builder(page)
    drag(page, (100, 100), (300, 300))
    fault = page.locator("[data-key=desc] .fault")
    expect(fault).to_contain_text("Empty; the model may draw a grey placeholder.")
    page.get_by_label("Description of the element").fill("a cat")
    expect(fault).to_be_hidden()
    changed = caption(page)
    changed["compositional_deconstruction"]["elements"][0] |= {"color_palette": ["red"], "mood": "calm"}
    page.get_by_label("Caption (JSON object)").fill(json.dumps(changed))
    expect(page.locator("[data-key=color_palette] .fault")).to_have_text("A colour must be #RRGGBB.")
    expect(page.locator("#element-fault")).to_have_text("Not a key of the schema.")
    expect(page.locator("#elements .count")).to_have_text("⚠ 2")
    expect(page.locator("#json-state")).to_have_text("Deviates from the schema")
    expect(page.locator("#json-faults li")).to_have_count(3)  # and the empty background


def test_background_style_and_colours(page: Page) -> None:
    open_builder(page)
    page.get_by_label("Background colour").fill("#ffcc00")
    assert caption(page)["compositional_deconstruction"]["background"] == "plain #FFCC00 background"
    shot = screenshot(page.locator("#canvas"))
    assert shot.getpixel((shot.width // 40 + 3, 3)) == rgb("#FFCC00")
    page.get_by_label("Style", exact=True).select_option("photo")
    page.get_by_label("Photo", exact=True).fill("85 mm")
    page.get_by_label("Lighting").fill("soft")
    page.locator("#style-palette").get_by_role("button", name="Add colour").click()
    style = caption(page)["style_description"]
    assert list(style) == ["aesthetics", "lighting", "photo", "medium", "color_palette"]
    page.get_by_label("Style", exact=True).select_option("art_style")
    assert caption(page)["style_description"]["art_style"] == "85 mm"
    page.get_by_role("button", name="Remove colour 1").click()
    assert "color_palette" not in caption(page)["style_description"]
    page.get_by_label("Style", exact=True).select_option("")
    assert "style_description" not in caption(page)


def test_elements_are_reordered_and_removed(page: Page) -> None:
    open_builder(page)
    for name in ("one", "two", "three"):
        page.get_by_role("button", name="Add text").click()
        page.get_by_label("Text in the image").fill(name)
    page.get_by_role("button", name="Move element 3 back").click()
    assert [each["text"] for each in elements(page)] == ["one", "three", "two"]
    expect(page.get_by_label("Text in the image")).to_have_value("three")
    page.locator("#elements .pick").first.click()
    page.get_by_role("button", name="Remove element 1").click()
    assert [each["text"] for each in elements(page)] == ["three", "two"]


def test_templates_import_and_export(page: Page, tmp_path: Path) -> None:
    open_builder(page)
    for name, boxes in (("Logo", 2), ("Product shot", 3), ("Poster", 3)):
        page.get_by_label("Start from a template").select_option(name)
        expect(page.locator("#canvas .box")).to_have_count(boxes)
        expect(page.locator("#json-faults li")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "poster.json"
    download.value.save_as(file)
    poster = caption(page)
    assert json.loads(file.read_text()) == poster
    page.locator("#elements .pick").first.click()
    page.get_by_role("button", name="Remove element 1").click()
    page.get_by_label("Caption file").set_input_files(file)
    expect(page.get_by_role("status")).to_have_text("Imported poster.json.")
    assert caption(page) == poster
    file.write_text("[]")
    page.get_by_label("Caption file").set_input_files(file)
    expect(page.get_by_role("status")).to_contain_text("poster.json is not a caption")
    assert caption(page) == poster


def test_the_boxes_are_laid_over_the_image(page: Page) -> None:
    open_builder(page)
    draw_box(page, (250, 250, 750, 750), "a block", RED)
    generate(page)
    page.get_by_label("Show boxes").check()
    image, box = page.locator("#picture img").bounding_box(), page.locator(".overlay div").bounding_box()
    assert image
    assert box
    assert abs(box["x"] - image["x"] - image["width"] / 4) < 2
    assert abs(box["width"] - image["width"] / 2) < 2
    expect(page.locator(".overlay")).to_have_text("a block")
