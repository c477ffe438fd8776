"""The files of the pages: types, policy, revalidation, and nothing from elsewhere."""

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.server.playground.pages import DESKTOP, open_page
from tests.server.process import ServerProcess


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/static/main.js", "javascript"), ("/static/styles/theme.css", "text/css")],
)
def test_files_have_a_type_and_a_strict_policy(server: ServerProcess, path: str, kind: str) -> None:
    response = server.http.get(path)
    assert kind in response.headers["content-type"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    again = server.http.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == (304 if path != "/" else 200)


@pytest.mark.parametrize(
    "path", ["nothing.js", "", "styles", "../app.py", "..%2fapp.py", "%2fetc%2fpasswd", "%00"]
)
def test_other_files_do_not_exist(server: ServerProcess, path: str) -> None:
    assert server.http.get(f"/static/{path}").status_code == 404


def test_other_scripts_are_blocked(browser: Browser, server: ServerProcess) -> None:
    page = open_page(browser)
    page.goto(server.url)
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.append("document.title = 'taken'");
        document.head.append(script);
    }""")
    assert page.title() == "ideoserve playground"
    assert "TrustedScript" in refused[0]
    blocked = "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } }"
    assert page.evaluate(blocked) == "TypeError"
    page.context.close()


def test_the_api_reference_needs_no_other_server(browser: Browser, server: ServerProcess) -> None:
    page = open_page(browser, viewport=DESKTOP)
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"{server.url}/docs")
    expect(page.locator("#operations-default-create_image")).to_be_visible()
    page.locator("#operations-default-validate_caption button").first.click()
    expect(page.get_by_text("Validate and normalize a structured caption").first).to_be_visible()
    assert [url for url in asked if not re.match(rf"{server.url}/|data:|blob:", url)] == []
    assert problems == []
    page.context.close()
