"""Captions in the shapes that language models emit, and captions with little in them."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from server.captions.unwrap import extract, looks_like_json, unwrap
from tests.server.captions.test_captions import GOOD, NORMAL, drawn, places
from tests.server.process import ServerProcess

TEXT = json.dumps(GOOD, ensure_ascii=False)
WRAPPED = {
    "byte order mark": "\ufeff" + TEXT,
    "code fence": f"```json\n{TEXT}\n```",
    "code fence of no language": f"```\n{TEXT}\n```\n",
    "code fence in one line": f"```json {TEXT}```",
    "byte order mark in a code fence": f"```json\n\ufeff{TEXT}\n```",
    "string": json.dumps(TEXT),
    "string in a string": json.dumps(json.dumps(TEXT)),
    "list of one": f"[{TEXT}]",
    "list of a string in a code fence": f"```\n[{json.dumps(TEXT)}]\n```",
}
BROKEN = {
    "cut off": TEXT[:-9],
    "cut off in a code fence": f"```json\n{TEXT[:-9]}",
    "Python": repr(GOOD),
    "list of two": f"[{TEXT},{TEXT}]",
    "another object in a code fence": '```json\n{"a": 1}\n```',
    "string of another object": json.dumps('{"a": 1}'),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess(module="tests.server.prompt_server")
    yield process
    process.close()


@pytest.mark.parametrize("caption", ["lenient", "strict"])
@pytest.mark.parametrize("shape", WRAPPED)
def test_a_wrapped_caption_is_read(server: ServerProcess, shape: str, caption: str) -> None:
    response = server.create(prompt=WRAPPED[shape], caption=caption)
    assert (response.status_code, response.json().get("warnings")) == (200, None)
    assert drawn(server) == NORMAL


@pytest.mark.parametrize("shape", BROKEN)
def test_a_broken_caption_is_text_with_a_warning(server: ServerProcess, shape: str) -> None:
    response = server.create(prompt=BROKEN[shape])
    assert places(response.json()["warnings"]) == {("", "not_a_caption")}
    assert drawn(server) == BROKEN[shape]
    for path in ("/v1/images", "/v1/captions/validate"):
        refused = server.http.post(path, json={"prompt": BROKEN[shape], "caption": "strict"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_caption", "prompt")
        assert places(error["faults"]) == {("", "not_a_caption")}


@pytest.mark.parametrize(
    "text", ["a {curly} cat", "[1] a cat", '"a cat"', "```\na cat\n```", "'tis a cat", ""]
)
def test_plain_text_needs_no_warning(text: str) -> None:
    assert (unwrap(text), looks_like_json(text)) == (None, False)


SPARSE = {
    "high_level_description": " ",
    "style_description": {
        "aesthetics": "a",
        "lighting": "b",
        "photo": "c",
        "medium": "d",
        "color_palette": [],
    },
    "compositional_deconstruction": {
        "background": "",
        "elements": [{"type": "obj", "desc": ""}, {"type": "obj", "desc": "a", "color_palette": []}],
    },
}
EMPTY = {
    ("high_level_description", "empty"),
    ("style_description.color_palette", "empty"),
    ("compositional_deconstruction.background", "empty"),
    ("compositional_deconstruction.elements.0.desc", "empty"),
    ("compositional_deconstruction.elements.1.color_palette", "empty"),
}


@pytest.mark.parametrize("caption", ["lenient", "strict"])
def test_empty_values_are_warnings(server: ServerProcess, caption: str) -> None:
    """The schema allows them, so `strict` does too."""
    response = server.create(json_prompt=SPARSE, caption=caption)
    assert response.status_code == 200
    assert places(response.json()["warnings"]) == EMPTY
    body: dict[str, Any] = {"json_prompt": SPARSE, "caption": caption}
    report = server.http.post("/v1/captions/validate", json=body).json()
    assert (report["valid"], places(report["warnings"])) == (True, EMPTY)


def test_no_elements(server: ServerProcess) -> None:
    caption = {"compositional_deconstruction": {"background": "sky", "elements": []}}
    warnings = server.create(json_prompt=caption).json()["warnings"]
    assert places(warnings) == {("compositional_deconstruction.elements", "empty")}


@pytest.mark.parametrize(
    "answer",
    [
        *WRAPPED.values(),
        f"<think>An object {{}} is needed.</think>\n{TEXT}",
        f"Let me see.\n</thinking>\n```json\n{TEXT}\n```",
        f"Here is your caption:\n\n```json\n{TEXT}\n```\n\nDo you like it?",
        f"Here it is: {TEXT} I hope it helps.",
    ],
)
def test_the_object_of_an_answer(answer: str) -> None:
    assert extract(answer) == GOOD


@pytest.mark.parametrize("answer", ["", "Sure!", TEXT[:-9], repr(GOOD), "<think>" + TEXT[:-1]])
def test_an_answer_without_an_object(answer: str) -> None:
    assert extract(answer) is None


@pytest.mark.parametrize(
    "piece", ["```", "```\n", "<think>", "</think>", "[", '["', "{", " \n", '"{', "`", "```json\n{", "}"]
)
def test_the_time_to_read_is_linear(piece: str) -> None:
    """An answer of an upstream has at most 1 MiB; a quadratic search would take minutes."""
    text = piece * ((1 << 20) // len(piece))
    started = time.process_time()
    extract(text)
    looks_like_json(text)
    assert time.process_time() - started < 5
