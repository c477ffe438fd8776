"""Several images at once, comparison, history, restored settings, estimate, queue, errors at their field."""

import io

from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.server.playground.pages import caption, colour, draw_box, generate, open_builder
from tests.server.process import ServerProcess

# Three pictures are stored, with the timings that arrive last.
KEPT = """async () => {
    const result = (asked) => new Promise((resolve) => { asked.onsuccess = () => resolve(asked.result); });
    const database = await result(indexedDB.open("ideoserve"));
    const kept = await result(database.transaction("pictures").objectStore("pictures").getAll());
    return kept.length === 3 && kept.every((record) => record.timings);
}"""


def test_four_seeds_at_once(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.get_by_label("Seed", exact=True).fill("40")
    page.get_by_role("button", name="Four seeds").click()
    expect(page.get_by_role("status")).to_contain_text("Done in")
    expect(page.locator("#picture.many img")).to_have_count(4)
    page.get_by_role("button", name="Open the image of seed 42").click()
    assert colour(page) == (42, 66, 128)


def test_two_settings_side_by_side(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.get_by_label("Seed", exact=True).fill("5")
    generate(page)
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Preset").select_option("V4_TURBO_12")
    generate(page)
    expect(page.locator("#picture img")).to_have_count(2)
    expect(page.locator("#list tr.differs")).to_have_count(1)
    assert page.locator("#list tr.differs td").all_inner_texts() == ["V4_DEFAULT_20", "V4_TURBO_12"]
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.locator("#picture img")).to_have_count(1)


def test_the_history_outlives_the_page(page: Page) -> None:
    page.get_by_label("Prompt", exact=True).fill("a cat")
    for seed in ("11", "12", "13"):
        page.get_by_label("Seed", exact=True).fill(seed)
        generate(page)
    page.wait_for_function(KEPT)
    page.reload()
    picks = page.locator("#gallery .pick")
    expect(picks).to_have_count(3)
    picks.last.click()
    assert colour(page) == (11, 64, 128)
    page.get_by_role("button", name="Delete the image of seed 11").click()
    expect(page.locator("#picture")).to_have_text("The image appears here.")
    page.reload()
    expect(picks).to_have_count(2)
    page.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("status")).to_have_text("The history is deleted.")
    page.reload()
    expect(page.locator("#model")).to_have_text("fake-model")
    expect(picks).to_have_count(0)


def test_an_image_restores_its_settings(page: Page, server: ServerProcess) -> None:
    open_builder(page)
    draw_box(page, (100, 100, 500, 500), "a köttbulle")
    drawn = caption(page)
    body = {"json_prompt": drawn, "size": "192x96", "preset": "V4_TURBO_12", "seed": 77}
    file = server.http.post("/v1/images", json=body, headers={"Accept": "image/png"}).content
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    with page.expect_request("**/v1/models"):
        page.reload()
    page.get_by_label("Image file").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": file}
    )
    held[0].continue_()
    page.unroute("**/v1/models")
    expect(page.get_by_role("status")).to_have_text("Settings and prompt restored.")
    assert caption(page) == drawn
    assert page.locator("#size").input_value() == "192x96"
    assert page.locator("#preset").input_value() == "V4_TURBO_12"
    assert page.locator("#seed").input_value() == "77"
    other = io.BytesIO()
    Image.new("RGB", (8, 8)).save(other, "png")
    page.evaluate(
        """(bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
            const options = { dataTransfer: data, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        list(other.getvalue()),
    )
    expect(page.get_by_role("status")).to_have_text("b.png is the image to draw from.")


def test_estimate_and_place_in_the_queue(page: Page, server: ServerProcess) -> None:
    page.get_by_label("Prompt", exact=True).fill("wait: a cat")
    expect(page.locator("#estimate")).to_have_text("Takes about 2.0 s.")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_have_text("Position 1 in the queue, about 2.0 s to go")
    server.release()
    expect(page.get_by_role("status")).to_contain_text("Done in")


def test_errors_are_at_their_field(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_have_text("Describe the image.")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.get_by_label("Prompt", exact=True).fill("a cat")
    page.get_by_label("Seed", exact=True).fill("9999999999")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#seed-error")).to_have_text("A whole number from 0 to 2147483647, or nothing.")
    expect(page.locator("#prompt-error")).to_be_hidden()
    page.get_by_label("Seed", exact=True).fill("")
    generate(page)
    expect(page.locator("#seed-error")).to_be_hidden()
