"""The response format that `Accept` selects, by the lists that libraries and browsers send."""

from typing import Any

import httpx
import pytest

from tests.server.process import ServerProcess, small
from tests.server.routes.test_errors import check

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"
CHROME_PAGE = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
FIREFOX_PAGE = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,image/svg+xml,"
    "*/*;q=0.8"
)
DEFAULTS = {
    "curl, requests, fetch, Ruby": "*/*",
    "JDK HttpURLConnection": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
    "JDK 22 HttpURLConnection": "text/html, image/gif, image/jpeg, */*; q=0.2",
    "Chrome, a form": CHROME_PAGE,
    "Firefox, a form": FIREFOX_PAGE,
    "Safari, a form": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "axios": "application/json, text/plain, */*",
    "jQuery": "application/json, text/javascript, */*; q=0.01",
    "RestSharp": "application/json, text/json, text/x-json, text/javascript, application/xml, text/xml",
    "n8n": "application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, "
    "image/*;q=0.8, */*;q=0.7",
    "Spring, text": "text/plain, application/json, application/*+json, */*",
    "Spring, bytes": "application/octet-stream, */*",
    "w3m": "text/html, text/*;q=0.5, image/*, application/*, multipart/*, audio/*, */*",
    "MCP clients": "application/json, text/event-stream",
    "OpenAI SDKs": "application/json",
    "JSON and no wildcard": "text/html, image/png, application/json;q=0.1",
}
WISHES = {
    "Chrome, img": ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", WEBP),
    "Safari, img": (
        "image/webp,image/avif,image/jxl,image/heic,image/heic-sequence,video/*;q=0.8,image/png,"
        "image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        WEBP,
    ),
    "an image, or JSON for errors": ("image/jpeg, application/json", JPEG),
    "an image, or anything": ("image/png, */*", PNG),
    "any image": ("image/*", PNG),
    "an image, by quality": ("application/json;q=0.5, image/jpeg", JPEG),
    "JSON, by quality": ("image/jpeg;q=0.5, application/json", JSON),
    "any image but PNG": ("image/*, image/png;q=0", JPEG),
    "not JSON": ("*/*, application/json;q=0", PNG),
    "no format that this server has": ("image/avif, */*", JSON),
    "a page or an image": ("text/html, image/avif, image/*;q=0.8", PNG),
    "events": ("text/event-stream", EVENTS),
    "events, or JSON": ("text/event-stream, application/json", EVENTS),
    "events, or anything": ("text/event-stream, */*;q=0.1", EVENTS),
    "any text": ("text/*", EVENTS),
    "upper case and spaces": ("IMAGE/WEBP ; Q=0.9 ,APPLICATION/JSON;q=0.8", WEBP),
    "empty parts": (",, image/webp,,", WEBP),
}


def content_type(server: ServerProcess, *accept: str, **fields: Any) -> str:
    headers = [("Accept", line) for line in accept]
    request = httpx.Request("POST", f"{server.url}/v1/images", json=small(**fields), headers=headers)
    response = server.http.send(request)
    assert response.status_code == 200, response.text
    return response.headers["content-type"]


@pytest.mark.parametrize("accept", DEFAULTS.values(), ids=DEFAULTS)
def test_the_default_of_a_library_is_no_wish(server: ServerProcess, accept: str) -> None:
    assert content_type(server, accept) == JSON
    assert content_type(server, accept, n=2) == JSON


@pytest.mark.parametrize(("accept", "expected"), WISHES.values(), ids=WISHES)
def test_the_most_preferred_type_is_a_wish(server: ServerProcess, accept: str, expected: str) -> None:
    assert content_type(server, accept) == expected


def test_no_accept_is_json(server: ServerProcess) -> None:
    assert content_type(server) == JSON


def test_repeated_lines_are_one_list(server: ServerProcess) -> None:
    assert content_type(server, "text/html", "image/jpeg", "*/*;q=0.1") == JSON
    assert content_type(server, "audio/ogg;q=0.1", "image/webp") == WEBP


def test_an_image_format_is_chosen_among_the_acceptable(server: ServerProcess) -> None:
    assert content_type(server, "image/webp, image/jpeg", output_format="jpeg") == JPEG
    assert content_type(server, "image/webp, */*", output_format="jpeg") == JSON
    assert content_type(server, "image/*", output_format="webp") == WEBP


def test_several_images_are_json_where_that_is_acceptable(server: ServerProcess) -> None:
    assert content_type(server, "image/png, */*;q=0.1", n=2) == JSON
    check(server.create({"Accept": "image/png"}, n=2), 400, "invalid_value", "n")


@pytest.mark.parametrize("accept", ["audio/ogg", "image/gif", "*/*;q=0", "image/png;q=nonsense", "json"])
def test_what_cannot_be_served_is_not_acceptable(server: ServerProcess, accept: str) -> None:
    check(server.create({"Accept": accept}), 406, "not_acceptable", "Accept")
