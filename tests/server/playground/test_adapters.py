"""Adapters in the playground."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.adapters.files import FAST, write_adapter, write_settings
from tests.server.playground.pages import generate
from tests.server.playground.test_accessibility import AXE, violations
from tests.server.process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Takes the place of the server of the other pages."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "tarot.safetensors", trigger_words="tarot card")
    write_adapter(folder / "fast" / "a.safetensors")
    write_settings(folder / "fast", preset=FAST)
    process = ServerProcess("--adapters", str(folder))
    yield process
    process.close()


def last(server: ServerProcess) -> tuple[list[tuple[str, float]], int]:
    """The adapters of the last request with their scales, and its number of steps."""
    request: dict[str, Any] = server.state()["requests"][-1]
    adapters = [(use["name"], use["scale"]) for use in request["adapters"]]
    return adapters, len(request["sampling"]["guidance_schedule"])


def test_adapters_are_chosen_with_their_scales(page: Page, server: ServerProcess) -> None:
    page.get_by_role("textbox", name="Prompt").fill("a cat")
    adapters, preset = page.get_by_label("Adapters"), page.get_by_label("Preset")
    adapters.select_option("tarot")
    expect(page.get_by_text("Words for the prompt: tarot card")).to_be_visible()
    page.get_by_label("Scale of tarot").fill("-0.5")
    generate(page)
    assert last(server) == ([("tarot", -0.5)], 20)
    expect(page.locator("#list")).to_contain_text("tarot -0.5")
    adapters.select_option("fast")
    expect(adapters).to_be_disabled()
    expect(preset).to_have_value("")
    page.evaluate(AXE)
    assert violations(page) == []
    generate(page)
    assert last(server) == ([("tarot", -0.5), ("fast", 1.0)], 4)
    page.get_by_role("button", name="Remove fast").click()
    page.get_by_role("button", name="Remove tarot").click()
    expect(preset).to_have_value("V4_DEFAULT_20")
    generate(page)
    assert last(server) == ([], 20)
