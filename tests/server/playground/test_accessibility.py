"""axe-core finds no violation, on a desktop and on a phone, light and dark."""

from pathlib import Path
from typing import Any, Literal

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from tests.server.edits.pictures import encoded, halves
from tests.server.playground.pages import (
    choose_image,
    generate,
    open_builder,
)

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
Scheme = Literal["light", "dark"]
RUN = """axe.run().then(({ violations }) =>
    violations.map((each) => [each.id, ...each.nodes.map((node) => node.html)]))"""


def violations(page: Page) -> Any:
    return page.evaluate(RUN)


@pytest.mark.parametrize(("device", "scheme"), [("page", "light"), ("phone", "dark")])
def test_axe_finds_no_violation(request: pytest.FixtureRequest, device: str, scheme: Scheme) -> None:
    page: Page = request.getfixturevalue(device)
    page.emulate_media(color_scheme=scheme)
    page.evaluate(AXE)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_be_visible()
    choose_image(page, encoded(halves()))
    page.get_by_text("Extend the image").click()
    page.get_by_label("Mask", exact=True).press("Space")
    assert violations(page) == []
    open_builder(page)
    page.get_by_label("Start from a template").select_option("Poster")
    page.locator("#elements .pick").first.click()
    page.get_by_label("Description of the element").fill("")
    expect(page.locator("[data-key=desc] .fault")).to_be_visible()
    generate(page)
    page.get_by_label("Show boxes").check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Four seeds").click()
    expect(page.get_by_role("status")).to_contain_text("Done in")
    page.get_by_role("button", name="Open the image").first.click()
    assert violations(page) == []


def test_axe_finds_what_is_wrong(page: Page) -> None:
    page.evaluate(AXE)
    page.evaluate("() => { document.getElementById('seed').labels[0].remove() }")
    page.evaluate("() => { document.getElementById('seed').placeholder = '' }")
    assert [found[0] for found in violations(page)] == ["label"]
