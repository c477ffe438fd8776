"""Requests with adapters: what reaches the engine, the images and the lists; and errors."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.generation import metadata
from tests.server.adapters.files import FAST, SLOW, write_adapter, write_settings
from tests.server.adapters.hostile import REASONS, write_hostile
from tests.server.process import ServerProcess
from tests.server.routes.test_errors import check

KNOWN = "This key may use: `fast`, `pixel`, `slow`, `tarot`."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "tarot.safetensors", seed=1, trigger_words="tarot card, gilded")
    write_adapter(folder / "pixel" / "a.safetensors", seed=2, rank=3)
    write_settings(folder / "pixel", scale=0.5, trigger_words=["pixels"])
    for seed, (name, preset) in enumerate({"fast": FAST, "slow": SLOW}.items(), start=3):
        write_adapter(folder / name / f"{name}.safetensors", seed)
        write_settings(folder / name, preset=preset)
    write_hostile(folder, tmp_path_factory.mktemp("elsewhere"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess("--adapters", str(folder), "--model-alias", "dall-e-3")
    yield process
    process.close()


def applied(server: ServerProcess, **body: Any) -> list[dict[str, Any]]:
    """The adapters that reach the engine."""
    response = server.create(**body)
    assert response.status_code == 200, response.text
    adapters: list[dict[str, Any]] = server.state()["requests"][-1]["adapters"]
    return adapters


def listed(server: ServerProcess) -> dict[str, dict[str, Any]]:
    return {adapter["name"]: adapter for adapter in server.http.get("/v1/adapters").json()["data"]}


def test_adapters_reach_the_engine(server: ServerProcess, folder: Path) -> None:
    file = folder / "tarot.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    tarot = {"name": "tarot", "path": str(file), "digest": digest, "scale": 1.0}
    tarot |= {"first_step": 0, "end_step": 20}
    assert applied(server, adapters=[{"name": "tarot"}]) == [tarot]
    both = applied(server, adapters=[{"name": "pixel"}, {"name": "tarot", "scale": -1.5, "steps": [2, 5]}])
    assert [(use["name"], use["scale"]) for use in both] == [("pixel", 0.5), ("tarot", -1.5)]
    assert both[1] == tarot | {"scale": -1.5, "first_step": 2, "end_step": 5}
    assert applied(server) == applied(server, adapters=[]) == applied(server, adapters=None) == []


def test_a_model_id_names_an_adapter(server: ServerProcess) -> None:
    (use,) = applied(server, model="fake-model:pixel")
    assert (use["name"], use["scale"]) == ("pixel", 0.5)
    both = applied(server, model="dall-e-3:tarot", adapters=[{"name": "pixel"}])
    assert [use["name"] for use in both] == ["tarot", "pixel"]
    (use,) = applied(server, model="fake-model:tarot", adapters=[{"name": "tarot", "scale": 0.3}])
    assert use["scale"] == 0.3


def test_an_adapter_brings_its_preset(server: ServerProcess) -> None:
    applied(server, adapters=[{"name": "tarot"}, {"name": "fast"}])
    sampling = {"guidance_schedule": [1.0] * 4, "mu": 0.0, "std": 1.0}
    assert server.state()["requests"][-1]["sampling"] == sampling
    (use,) = applied(server, model="fake-model:fast", num_inference_steps=2)
    assert use["end_step"] == 2
    applied(server, adapters=[{"name": "fast"}], preset="V4_TURBO_12")
    assert len(server.state()["requests"][-1]["sampling"]["guidance_schedule"]) == 12
    two = [{"name": "fast"}, {"name": "slow"}]
    error = check(server.create(adapters=two), 400, "invalid_value", "adapters")
    assert error["message"] == "`fast` and `slow` bring different presets; set `preset`."
    assert len(applied(server, adapters=two, quality="low")) == 2


def test_the_lists(server: ServerProcess) -> None:
    adapters = listed(server)
    assert list(adapters) == sorted(adapters)
    tarot = adapters["tarot"]
    facts = {"model": "fake-model:tarot", "status": "ready", "error": None, "scale": 1.0, "preset": None}
    facts |= {"format": "peft", "rank": 2, "target": "conditional", "trigger_words": ["tarot card", "gilded"]}
    assert facts.items() <= tarot.items()
    assert tarot["bytes"] > 1000
    assert tarot["modules"] > 1
    assert adapters["pixel"]["trigger_words"] == ["pixels"]
    assert adapters["fast"]["preset"]["num_inference_steps"] == 4
    models = {model["id"]: model for model in server.http.get("/v1/models").json()["data"]}
    adapted = [f"fake-model:{name}" for name in ("fast", "pixel", "slow", "tarot")]
    assert list(models) == ["fake-model", "dall-e-3", *adapted]
    one = server.http.get("/v1/models/dall-e-3:tarot").json()
    assert one == models["fake-model:tarot"] | {"id": "dall-e-3:tarot"}
    assert (one["root"], one["adapter"], models["fake-model"]["adapter"]) == ("fake-model", "tarot", None)
    check(server.http.get("/v1/models/fake-model:none"), 404, "model_not_found", "model")


def test_what_is_broken_is_said(server: ServerProcess, folder: Path) -> None:
    adapters = listed(server)
    assert {name for name, adapter in adapters.items() if adapter["status"] == "broken"} == REASONS.keys()
    for name, reason in REASONS.items():
        assert adapters[name]["error"].startswith(reason)
        assert str(folder.parent) not in adapters[name]["error"]
        error = check(server.create(adapters=[{"name": name}]), 404, "adapter_not_found", "adapters")
        assert reason in error["message"]
        assert server.log_lines(message="adapter cannot be used", adapter=name, level="error")
    model = server.http.get("/v1/models/fake-model:nan")
    assert check(model, 404, "adapter_not_found", "model")["message"] == (
        f"The adapter `nan` cannot be used: {REASONS['nan']}."
    )
    assert "a secret" not in json.dumps(adapters)


MODELS = ("fake-model", "dall-e-3", *(f"fake-model:{name}" for name in ("fast", "pixel", "slow", "tarot")))
FIVE = {"model": "fake-model:tarot", "adapters": [{"name": name} for name in ("fast", "slow", "pixel", "x")]}


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "message"),
    [
        (
            {"adapters": [{"name": "none"}]},
            *(404, "adapter_not_found", "adapters"),
            f"Unknown adapter. {KNOWN}",
        ),
        (
            {"model": "fake-model:none"},
            *(404, "model_not_found", "model"),
            f"Unknown model; this server serves {', '.join(f'`{name}`' for name in MODELS)}.",
        ),
        (
            {"model": "fake-model:broken"},
            *(404, "adapter_not_found", "model"),
            "The adapter `broken` cannot be used: ",
        ),
        (
            {"adapters": [{"name": "tarot"}, {"name": "tarot"}]},
            *(400, "invalid_value", "adapters"),
            "`adapters` has `tarot` twice.",
        ),
        (FIVE, 400, "invalid_value", "adapters", "At most 4 adapters, with that of `model`."),
        (
            {"adapters": [{"name": "tarot", "steps": [3, 21]}]},
            *(400, "invalid_value", "adapters"),
            "`steps` of the adapter `tarot` must be [first, end] with first < end <= 20, ",
        ),
        (
            {"adapters": [{"name": "tarot", "scale": 2.5}]},
            *(400, "invalid_value", "adapters.0.scale"),
            "Input should be less than or equal to 2.",
        ),
    ],
)
def test_errors_name_the_field_and_the_limit(
    server: ServerProcess, body: dict[str, Any], status: int, code: str, param: str, message: str
) -> None:
    assert check(server.create(**body), status, code, param)["message"].startswith(message)


@pytest.mark.parametrize(
    ("adapters", "param"),
    [
        ([{"name": f"a{number}"} for number in range(5)], "adapters"),
        ([{}], "adapters.0.name"),
        ([{"name": "tarot", "weight": 1}], "adapters.0.weight"),
        ([{"name": "tarot", "steps": [1]}], "adapters.0.steps"),
        ([{"name": "tarot", "steps": [-1, 2]}], "adapters.0.steps.0"),
        (["tarot"], "adapters.0"),
        ("tarot", "adapters"),
    ],
)
def test_malformed_adapters(server: ServerProcess, adapters: Any, param: str) -> None:
    response = server.create(adapters=adapters)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_images_name_their_adapters(server: ServerProcess) -> None:
    tarot = {"name": "tarot", "scale": 0.8, "steps": [0, 4]}
    response = server.create(model="fake-model:pixel", adapters=[tarot])
    data = base64.b64decode(response.json()["data"][0]["b64_json"])
    adapters = listed(server)
    facts = metadata.read(Image.open(io.BytesIO(data)))
    assert facts
    assert facts["adapters"] == [
        {"name": "pixel", "digest": adapters["pixel"]["digest"], "scale": 0.5, "steps": [0, 20]},
        tarot | {"digest": adapters["tarot"]["digest"]},
    ]
    assert server.logged(adapters=["pixel", "tarot"])
    plain = metadata.read(Image.open(io.BytesIO(server.create({"Accept": "image/png"}).content)))
    assert plain
    assert "adapters" not in plain


def test_a_retry_with_other_adapters_is_refused(server: ServerProcess) -> None:
    key = {"Idempotency-Key": "adapters"}
    first = server.create(key, adapters=[{"name": "tarot"}])
    assert server.create(key, adapters=[{"name": "tarot"}]).json() == first.json()
    for other in ([{"name": "pixel"}], [{"name": "tarot", "scale": 0.5}], []):
        check(server.create(key, adapters=other), 422, "idempotency_key_reused", "Idempotency-Key")
