"""The JSON response against the model that documents it."""

import base64
import json
from collections.abc import Callable

import pytest

from server.schemas.responses import ImagesResponse
from tests.server.fake_upstream import upstream
from tests.server.process import ServerProcess


def test_the_body_is_the_documented_model(server: ServerProcess) -> None:
    body = server.create(n=3, seed=5, json_prompt={"a": "…"}).content
    response = ImagesResponse.model_validate_json(body)
    assert response.model_dump(exclude_unset=True) == json.loads(body)
    assert [image.seed for image in response.data] == [5, 6, 7]
    assert all(base64.b64decode(image.b64_json).startswith(b"\x89PNG") for image in response.data)


def test_absent_fields_are_left_out_and_null_paths_are_kept(server: ServerProcess) -> None:
    plain = server.create().json()
    assert "warnings" not in plain
    assert set(plain["data"][0]) == {"b64_json", "seed"}
    warned = server.create(json_prompt={"a": 1}).json()
    assert all({"code", "path", "message"} == set(warning) for warning in warned["warnings"])


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_the_body_is_ascii(start: Callable[..., ServerProcess], accept: str) -> None:
    """Some clients read JSON without a charset as Latin-1, some parsers end lines at U+2028."""
    caption = {"compositional_deconstruction": {"background": "grün\u2028", "elements": []}}
    with upstream(lambda _: True, {"json_prompt": caption}) as service:
        server = start("--magic-prompt-backend", "webhook", "--magic-prompt-url", service.url)
        body = server.create({"Accept": accept}).content
    assert rb"gr\u00fcn\u2028" in body
    assert body.isascii()


def test_a_prompt_that_looks_like_a_placeholder_changes_nothing(server: ServerProcess) -> None:
    """The base64 is inserted into JSON that has empty places for it."""
    caption = {'"b64_json":""': '"data":[]', "data": []}
    data = server.create(json_prompt=caption).json()["data"]
    assert base64.b64decode(data[0]["b64_json"]).startswith(b"\x89PNG")
