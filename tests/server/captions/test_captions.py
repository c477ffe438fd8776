"""Captions: normalization, deviations, and how responses report them."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.captions.caption import Caption
from server.captions.schema import caption_schema, strict_schema
from server.schemas.images import MAX_PROMPT_CHARACTERS
from tests.server.process import ServerProcess
from tests.server.routes.test_errors import check

SCHEMA = jsonschema_rs.validator_for(caption_schema())
ORDERS = {
    "": ["high_level_description", "style_description", "compositional_deconstruction"],
    "photo": ["aesthetics", "lighting", "photo", "medium", "color_palette"],
    "art_style": ["aesthetics", "lighting", "medium", "art_style", "color_palette"],
    "composition": ["background", "elements"],
    "obj": ["type", "bbox", "desc", "color_palette"],
    "text": ["type", "bbox", "text", "desc", "color_palette"],
}


def shuffled(value: Any, order: random.Random) -> Any:
    """The value with its keys in random order at every depth."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, order)) for key, item in value.items()]
        return dict(order.sample(items, len(items)))
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
digits = st.text("0123456789abcdefABCDEF", min_size=6, max_size=6)
colours = st.one_of(digits, digits.map(lambda text: text[:3])).map("#{}".format)
boxes = st.tuples(*[st.integers(0, 1000)] * 4).map(
    lambda box: [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
)


def palettes(most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(colours, max_size=most)


def styles(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    required = {key: words for key in ORDERS[kind] if key != "color_palette"}
    return st.fixed_dictionaries(required, optional={"color_palette": palettes(16)})


def elements(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    required = {key: words for key in ORDERS[kind] if key not in ("type", "bbox", "color_palette")}
    optional = {"bbox": st.one_of(boxes, st.none()), "color_palette": palettes(5)}
    return st.fixed_dictionaries({"type": st.just(kind), **required}, optional=optional)


compositions = st.fixed_dictionaries(
    {"background": words, "elements": st.lists(st.one_of(elements("obj"), elements("text")), max_size=3)}
)
captions = st.builds(
    lambda value, seed: shuffled(value, random.Random(seed)),
    st.fixed_dictionaries(
        {"compositional_deconstruction": compositions},
        optional={
            "high_level_description": words,
            "style_description": st.one_of(styles("photo"), styles("art_style")),
        },
    ),
    st.integers(0, 2**32),
)
keys = st.sampled_from(sorted({key for order in ORDERS.values() for key in order}))
anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.one_of(words, keys), inner, max_size=5),
    max_leaves=20,
)
wild = st.fixed_dictionaries(
    {"compositional_deconstruction": anything}, optional={"style_description": anything}
)
thorough = settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def meaning(value: Any) -> Any:
    """The value without what normalization may change: key order, nulls and the spelling of colours."""
    if isinstance(value, dict):
        return {key: meaning(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [meaning(item) for item in value]
    if isinstance(value, str) and value.startswith("#") and len(value) in (4, 7):
        short = value[1:].lower()
        return "".join(digit * 2 for digit in short) if len(short) == 3 else short
    return value


def in_order(value: dict[str, Any], order: str) -> None:
    assert list(value) == [key for key in ORDERS[order] if key in value]


@thorough
@given(captions)
def test_normalization_keeps_the_meaning(value: dict[str, Any]) -> None:
    caption = Caption.of(value)
    assert caption.faults == ()
    SCHEMA.validate(caption.value)
    assert meaning(caption.value) == meaning(value)
    in_order(caption.value, "")
    composition = caption.value["compositional_deconstruction"]
    in_order(composition, "composition")
    for element in composition["elements"]:
        in_order(element, element["type"])
    if "style_description" in caption.value:
        style = caption.value["style_description"]
        in_order(style, "photo" if "photo" in style else "art_style")
    assert json.loads(caption.text) == caption.value
    assert caption.text == json.dumps(caption.value, ensure_ascii=False, separators=(",", ":"))
    again = Caption.parse(caption.text)
    assert again is not None
    assert (again.text, again.faults) == (caption.text, ())


@settings(thorough, max_examples=300)
@given(wild)
def test_deviations_are_kept(value: dict[str, Any]) -> None:
    caption = Caption.of(value)
    assert meaning(caption.value) == meaning(json.loads(json.dumps(value)))
    assert Caption.of(caption.value).text == caption.text
    assert bool(caption.faults) or SCHEMA.is_valid(caption.value)
    assert "\n".join(fault.message for fault in caption.faults).isascii()


def of_elements(*elements: Any) -> dict[str, Any]:
    return {"compositional_deconstruction": {"background": "", "elements": list(elements)}}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("0.0", "0"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1001.0", "1001.0"),
        ("-1e0", "-1.0"),
        ("1e22", "1e+22"),
        ("-1e308", "-1e+308"),
        ("5e-324", "5e-324"),
        ("9" * 400, "9" * 400),
    ],
)
def test_only_a_coordinate_becomes_an_integer(given: str, text: str) -> None:
    """A number out of range stays a float: 1e308 would be 309 digits."""
    caption = Caption.of(json.loads(json.dumps(of_elements({"bbox": [1]})).replace("[1]", f"[{given}]")))
    assert f'"bbox":[{text}]' in caption.text
    assert ("bbox", "compositional_deconstruction.elements.0.bbox") in [
        (fault.code, fault.path) for fault in caption.faults
    ]


def test_the_text_to_moderate() -> None:
    """Every string, and every number that the model may read as text, at any depth; no coordinates."""
    element = {
        "type": "text",
        "text": 1488,
        "desc": None,
        "bbox": [1, 2, 3, 4],
        "mood": {"dark": [2.5, True]},
    }
    caption = Caption.of(of_elements(element, {"bbox": ["here", 9]}, ["there"]))
    words = ["1488", "mood", "dark", "2.5", "here", "9", "there", "text"]
    assert sorted(filter(None, caption.words.split("\n"))) == sorted(words)


def test_the_strict_schema_requires_every_key() -> None:
    """Structured outputs need that; optional keys may be null, which normalization removes."""
    element = {"type": "obj", "bbox": None, "desc": "a", "color_palette": None}
    composition = {"background": "b", "elements": [element]}
    value = {"high_level_description": None, "style_description": None}
    strict = jsonschema_rs.validator_for(strict_schema(caption_schema()))
    strict.validate(value | {"compositional_deconstruction": composition})
    assert not strict.is_valid({"compositional_deconstruction": composition})
    SCHEMA.validate(Caption.of(value | {"compositional_deconstruction": composition}).value)


GOOD = {
    "compositional_deconstruction": {
        "elements": [{"desc": "ein Käfer 🪲", "type": "obj", "bbox": [0, 1, 2, 3]}],
        "background": "sky",
    }
}
NORMAL = (
    '{"compositional_deconstruction":{"background":"sky",'
    '"elements":[{"type":"obj","bbox":[0,1,2,3],"desc":"ein Käfer 🪲"}]}}'
)
BAD = {
    "high_level_description": 1,
    "style_description": {"photo": "a", "art_style": "b", "lighting": "c", "medium": "d"},
    "compositional_deconstruction": {
        "elements": [
            {"type": "obj", "desc": "a", "bbox": [5, 0, 1, 1], "color_palette": ["#abcdef"] * 6},
            {"type": "text", "desc": "a", "bbox": [0, 0, 1001, 1], "color_palette": ["red"]},
            {"type": "thing", "desc": "a"},
            "cat",
        ],
        "mood and secrets": 1,
    },
}
BAD_FAULTS = {
    ("high_level_description", "type"),
    ("style_description", "style_kind"),
    ("style_description.aesthetics", "missing"),
    ("compositional_deconstruction.background", "missing"),
    ("compositional_deconstruction.?", "unknown_key"),
    ("compositional_deconstruction.elements.0.bbox", "bbox_order"),
    ("compositional_deconstruction.elements.0.color_palette", "too_many_colours"),
    ("compositional_deconstruction.elements.1.text", "missing"),
    ("compositional_deconstruction.elements.1.bbox", "bbox"),
    ("compositional_deconstruction.elements.1.color_palette.0", "colour"),
    ("compositional_deconstruction.elements.2.type", "element_type"),
    ("compositional_deconstruction.elements.3", "type"),
}


def places(faults: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(fault["path"], fault["code"]) for fault in faults}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    process = ServerProcess(module="tests.server.prompt_server")
    yield process
    process.close()


def drawn(server: ServerProcess) -> str:
    """The prompt of the last request to the engine."""
    texts: list[str] = server.http.get("/_fake/drawn").json()
    return texts[-1]


@pytest.mark.parametrize(
    "body", [{"json_prompt": GOOD}, {"prompt": json.dumps(GOOD)}], ids=["object", "string"]
)
def test_the_model_reads_the_normal_form(server: ServerProcess, body: dict[str, Any]) -> None:
    response = server.create(**body, caption="strict")
    assert response.status_code == 200
    assert "warnings" not in response.json()
    assert drawn(server) == NORMAL


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '{"high_level_description": "a"}',
        "[1]",
        '{"compositional_deconstruction": ',
        "{curly} hair",
        " {}",
    ],
)
def test_other_json_is_plain_text(server: ServerProcess, text: str) -> None:
    assert server.create(prompt=text).status_code == 200
    assert drawn(server) == text


@pytest.mark.parametrize("path", ["/v1/images", "/v1/captions/validate"])
@pytest.mark.parametrize("text", ['{"high_level_description": "a"}', json.dumps(GOOD)[:-1] + ",}"])
def test_strict_refuses_a_broken_caption(server: ServerProcess, path: str, text: str) -> None:
    before = len(server.state()["requests"])
    body = {"size": "64x64"} if path == "/v1/images" else {}
    response = server.http.post(path, json=body | {"prompt": text, "caption": "strict"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_caption", "prompt")
    assert places(error["faults"]) == {("", "not_a_caption")}
    assert len(server.state()["requests"]) == before
    assert server.create(prompt="a {curly} cat", caption="strict").status_code == 200


def test_deviations_are_warnings(server: ServerProcess) -> None:
    response = server.create(json_prompt=BAD)
    assert response.status_code == 200
    assert places(response.json()["warnings"]) == BAD_FAULTS
    as_image = server.create({"Accept": "image/png"}, json_prompt=BAD)
    assert "bbox_order" in as_image.headers["x-warnings"].split(", ")
    as_events = server.create(json_prompt=BAD, stream=True)
    completed = [line for line in as_events.text.splitlines() if '"image_generation.completed"' in line]
    assert places(json.loads(completed[0].removeprefix("data: "))["warnings"]) == BAD_FAULTS


@pytest.mark.parametrize("field", ["json_prompt", "prompt"])
@pytest.mark.parametrize("path", ["/v1/images", "/v1/captions/validate"])
def test_strict_names_every_fault(server: ServerProcess, field: str, path: str) -> None:
    before = len(server.state()["requests"])
    value = BAD if field == "json_prompt" else json.dumps(BAD)
    response = server.http.post(path, json={field: value, "caption": "strict"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_caption", field)
    assert places(error["faults"]) == BAD_FAULTS
    assert all(path in error["message"] for path, _ in BAD_FAULTS)
    assert "secrets" not in response.text
    assert len(server.state()["requests"]) == before


def test_validate(server: ServerProcess) -> None:
    def report(**body: Any) -> Any:
        response = server.http.post("/v1/captions/validate", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    before = len(server.state()["requests"])
    good = report(json_prompt=GOOD)
    assert good == {"valid": True, "caption": json.loads(NORMAL), "prompt": NORMAL, "warnings": []}
    assert report(prompt=json.dumps(GOOD)) == good
    bad = report(json_prompt=BAD)
    assert (bad["valid"], places(bad["warnings"])) == (False, BAD_FAULTS)
    plain = report(prompt="a cat")
    assert (plain["valid"], plain["caption"], plain["prompt"]) == (False, None, None)
    assert places(plain["warnings"]) == {("", "not_a_caption")}
    many = report(json_prompt={"compositional_deconstruction": {"background": "a", "elements": [1] * 500}})
    assert len(many["warnings"]) == 101
    assert many["warnings"][-1]["message"] == "And 400 more."
    check(server.http.post("/v1/captions/validate", json={}), 400, "invalid_value", "prompt")
    check(server.http.post("/v1/captions/validate", json={"prompt": 1}), 400, "invalid_type", "prompt")
    assert len(server.state()["requests"]) == before


LONG = {
    # Within the limit as sent, beyond it after normalization.
    "colours": of_elements({"type": "obj", "desc": "", "color_palette": ["#abc"] * 3900}),
    "floats": json.dumps(of_elements({"bbox": [1]})).replace("[1]", f"[{','.join(['1e15'] * 5000)}]"),
}
PATHS = ["/v1/images", "/v1/captions/validate"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LONG)
def test_the_limit_applies_after_normalization(server: ServerProcess, name: str, path: str) -> None:
    value = LONG[name]
    text = value if isinstance(value, str) else json.dumps(value)
    assert len(text) < MAX_PROMPT_CHARACTERS
    for field, sent in (("prompt", text), ("json_prompt", json.loads(text))):
        error = check(server.http.post(path, json={field: sent}), 400, "string_above_max_length", field)
        assert "the limit is 32000" in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_number_out_of_range(server: ServerProcess, path: str) -> None:
    caption = json.dumps(of_elements(1)).replace("[1]", "[1e999]")
    raw = f'{{"json_prompt": {caption}}}'
    headers = {"Content-Type": "application/json"}
    check(server.http.post(path, content=raw, headers=headers), 400, "invalid_value", "json_prompt")
    check(server.http.post(path, json={"prompt": caption}), 400, "invalid_value", "prompt")


def test_many_digits_are_refused(server: ServerProcess) -> None:
    """A caption of 23 kB was once 604,529 tokens."""
    caption = of_elements({"type": "obj", "desc": "", "bbox": [1e308] * 3000})
    assert server.create(json_prompt=caption).status_code == 200
    assert len(drawn(server)) < MAX_PROMPT_CHARACTERS


HEAVY = {
    "lists": of_elements(*[[]] * 330_000),
    "objects": of_elements(*[{"a": 0}] * 110_000),
    "within the limit": of_elements(*[{}] * 10_000),
    "unknown keys": {f"{number:x}": 0 for number in range(60_000)},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", HEAVY)
def test_a_large_caption_does_not_block_the_event_loop(server: ServerProcess, name: str, path: str) -> None:
    body = json.dumps({"json_prompt": HEAVY[name]}, separators=(",", ":")).encode()
    assert len(body) < 1 << 20
    server.http.get("/_fake/stall")
    response = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400)
    assert server.http.get("/_fake/stall").json()["own"] < 0.03


def test_validate_requires_a_key(start: Callable[..., ServerProcess], tmp_path: Any) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": [{"name": "a", "key": "k"}]}')
    server = start("--api-keys-file", str(file))
    assert server.http.post("/v1/captions/validate", json={"json_prompt": GOOD}).status_code == 401


def test_the_schema_is_in_the_openapi_document(server: ServerProcess) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["components"]["schemas"]["Caption"] == caption_schema()
    fields = document["components"]["schemas"]["ImageRequest"]["properties"]["json_prompt"]["anyOf"]
    assert {"$ref": "#/components/schemas/Caption"} in fields[0]["anyOf"]
    assert SCHEMA.is_valid(json.loads(NORMAL))
    assert not SCHEMA.is_valid(BAD)


def test_magic_prompt_on_requires_an_upstream(server: ServerProcess) -> None:
    check(server.create(prompt="a cat", magic_prompt="on"), 400, "invalid_value", "magic_prompt")
    for choice in ("auto", "off"):
        assert server.create(prompt="a cat", magic_prompt=choice).status_code == 200
