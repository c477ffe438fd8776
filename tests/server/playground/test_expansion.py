"""The text prompt is expanded into boxes on the canvas."""

from collections.abc import Callable

from playwright.sync_api import Browser, expect

from tests.server.fake_upstream import fails, upstream
from tests.server.playground.pages import DESKTOP, caption, connect, open_page
from tests.server.process import ServerProcess

EXPANDED = {
    "compositional_deconstruction": {
        "background": "a green meadow",
        "elements": [{"type": "obj", "bbox": [300, 200, 900, 800], "desc": "a wombat"}],
    }
}


def test_a_prompt_is_expanded_onto_the_canvas(browser: Browser, start: Callable[..., ServerProcess]) -> None:
    with upstream(lambda asked: asked.json["prompt"] == "a wombat", {}) as service:
        service.answer = {"json_prompt": EXPANDED}
        server = start("--magic-prompt-backend", "webhook", "--magic-prompt-url", service.url)
        page = open_page(browser, viewport=DESKTOP)
        connect(page, server)
        page.get_by_label("Prompt", exact=True).fill("a wombat")
        service.next.extend([fails, fails])
        page.get_by_role("button", name="Expand into a caption").click()
        expect(page.get_by_role("status")).to_contain_text("The prompt was not expanded")
        page.get_by_role("button", name="Expand into a caption").click()
        expect(page.get_by_role("button", name="Box 1: a wombat")).to_be_visible()
        assert caption(page) == EXPANDED
        assert server.state()["requests"] == [], "no image is generated"
        assert service.wrong == []
        page.context.close()
