"""Every field and every value in the parameter types of the official Python SDK has a deliberate response."""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

import pytest
from openai.types import image_generate_params as sdk

from tests.server.process import ServerProcess

SERVED, IGNORED = "served", "ignored"
# Values of fields that take any text or number.
SAMPLES: dict[str, list[Any]] = {
    "prompt": ["a cat"],
    "model": ["fake-model"],
    "n": [1],
    "output_compression": [0, 100],
    "partial_images": [0],
    "safety_identifier": ["customer"],
    "user": ["customer"],
    "frame_count": [9],
    "frame_duration_ms": [200],
    "svg": [{"model": "author"}],
}
REFUSED: dict[tuple[str, Any], str] = {
    ("background", "transparent"): "`opaque`",
    ("output_format", "gif"): "`output_format` is png, jpeg or webp",
    ("output_format", "svg"): "`output_format` is png, jpeg or webp",
    ("response_format", "url"): "`b64_json`",
    ("frame_count", 9): "`output_format` is png, jpeg or webp",
    ("frame_duration_ms", 200): "`output_format` is png, jpeg or webp",
    ("svg", None): "`output_format` is png, jpeg or webp",
}
WITH_WARNING = {"complexity", "style"}


def literals(annotation: Any) -> Iterator[Any]:
    """Every value that an annotation lists, at any depth."""
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    elif typing.get_origin(annotation) in (Union, types.UnionType, typing.Required):
        for part in typing.get_args(annotation):
            yield from literals(part)


def vocabulary() -> list[tuple[str, Any]]:
    pairs = dict.fromkeys(
        (name, value)
        for params in (sdk.ImageGenerateParamsNonStreaming, sdk.ImageGenerateParamsStreaming)
        for name, annotation in typing.get_type_hints(params, include_extras=True).items()
        if name != "model"
        for value in literals(annotation)
    )
    return list(pairs)


def fields() -> set[str]:
    return set(typing.get_type_hints(sdk.ImageGenerateParamsNonStreaming))


def test_every_field_is_tried() -> None:
    assert fields() <= {name for name, _ in vocabulary()} | SAMPLES.keys()


@pytest.mark.parametrize(("name", "value"), vocabulary(), ids=str)
def test_every_literal(server: ServerProcess, name: str, value: Any) -> None:
    check(server, name, value)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in SAMPLES.items() for value in values], ids=str
)
def test_every_other_field(server: ServerProcess, name: str, value: Any) -> None:
    check(server, name, value)


def check(server: ServerProcess, name: str, value: Any) -> None:
    response = server.create(**{"output_format": "png", name: value})
    reason = REFUSED.get((name, value if not isinstance(value, dict) else None))
    if name == "size" and value not in ("auto", "256x256"):  # beyond the fake model's limits
        reason = "multiples of 16 from 64 to 256"
    if reason is None:
        assert response.status_code == 200, response.text
        codes = [] if name == "stream" and value else [each["code"] for each in warnings(response)]
        assert codes == (["parameter_ignored"] if name in WITH_WARNING else [])
    else:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, name)
        assert reason in error["message"]


def warnings(response: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = response.json().get("warnings", [])
    return found


@pytest.mark.parametrize("quality", ["xhigh", "max"])
def test_the_highest_qualities_are_the_best_preset(server: ServerProcess, quality: str) -> None:
    assert server.create(quality=quality).json()["quality"] == "high"
    assert len(server.state()["requests"][-1]["sampling"]["guidance_schedule"]) == 48
