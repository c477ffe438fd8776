"""Files that change while the server runs, adapters files, API keys, and repositories of the Hub."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.request import SamplingParams
from server.adapters.declaration import Declaration
from server.adapters.reader import AdapterReader
from server.adapters.source import Source
from server.settings.config_error import ConfigError
from tests.server.access.test_api_keys import bearer, write_keys
from tests.server.adapters.files import FAST, SLOW, write_adapter, write_broken, write_list, write_settings
from tests.server.adapters.test_requests import listed
from tests.server.fake_engine import CONFIG
from tests.server.hub.fake_hub import DOWN, FakeHub
from tests.server.process import ServerProcess, until
from tests.server.routes.test_errors import check

Start = Callable[..., ServerProcess]


def test_changes_are_noticed_without_a_restart(start: Start, tmp_path: Path) -> None:
    for name in ("kept", "style", "removed"):
        write_adapter(tmp_path / f"{name}.safetensors")
    server = start("--adapters", str(tmp_path))
    before = listed(server)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.create, prompt="hold: x", adapters=[{"name": "style"}])
        server.wait(running=1)
        (tmp_path / "removed.safetensors").unlink()
        write_broken(tmp_path / "broken.safetensors")
        write_adapter(tmp_path / "new" / "x.safetensors", seed=2)
        write_adapter(tmp_path / "style.safetensors", seed=1)
        until(lambda: "removed" not in (now := listed(server)) and now["style"] != before["style"])
        after = listed(server)
        assert server.create(adapters=[{"name": "style"}, {"name": "new"}]).status_code == 200
        server.release()
        assert running.result().status_code == 200
    assert {name: adapter["status"] for name, adapter in after.items()} == {
        "broken": "broken",
        "kept": "ready",
        "new": "ready",
        "style": "ready",
    }
    assert after["kept"] == before["kept"]
    first, second = (request["adapters"][0]["digest"] for request in server.state()["requests"])
    assert (first, second) == (before["style"]["digest"], after["style"]["digest"])
    for name, happened in {"new": "ready", "style": "ready", "removed": "removed"}.items():
        assert server.log_lines(message=f"adapter {happened}", adapter=name)
    assert len(server.log_lines(message="adapter cannot be used")) == 1


def test_a_file_is_not_read_while_it_is_written(tmp_path: Path) -> None:
    """Until then, the previous one is used."""
    file = write_adapter(tmp_path / "a.safetensors")
    reader, declared = AdapterReader(CONFIG), Declaration("a", str(file))
    source = Source(tmp_path, CONFIG)
    before = source.read({})
    file.write_bytes(file.read_bytes()[:-8])
    assert (before["a"].status, reader.read(declared).status) == ("ready", "loading")
    assert source.read(before) == before
    os.utime(file, (1_700_000_001, 1_700_000_001))
    assert (source.read(before)["a"].error or "").startswith("a.safetensors: ")


def test_a_file_is_read_once_and_within_the_time_of_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = write_adapter(tmp_path / "a.safetensors"), write_broken(tmp_path / "b.safetensors")
    reader, declared = AdapterReader(CONFIG), [Declaration(file.stem, str(file)) for file in (whole, broken)]
    assert [reader.read(each, until=0.0).status for each in declared] == ["loading", "loading"]
    read = [reader.read(each) for each in declared]
    assert [adapter.status for adapter in read] == ["ready", "broken"]
    monkeypatch.setattr("server.adapters.reader.read_header", None)
    assert [reader.read(each, until=0.0) for each in declared] == read


def test_a_preset_with_guidance_needs_a_guided_model(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a" / "a.safetensors")
    write_settings(tmp_path / "a", preset=SLOW)
    unguided = dataclasses.replace(CONFIG, presets={"ONE": SamplingParams((1.0,), 0.0, 1.0)})
    declared = Declaration("a", str(tmp_path / "a"))
    assert AdapterReader(CONFIG).read(declared).status == "ready"
    error = AdapterReader(unguided).read(declared).error
    assert error == "preset: guidance_schedule must be 1: the model runs without guidance"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    repository = tmp_path / "repository"
    for seed, name in enumerate(("wanted", "other")):
        write_adapter(repository / f"{name}.safetensors", seed)
    write_settings(repository, preset=FAST, scale=0.25)
    hub = FakeHub(repository, "team/styles")
    yield hub
    hub.close()


def test_an_adapters_file_with_keys_and_a_repository(start: Start, tmp_path: Path, hub: FakeHub) -> None:
    keys, adapters = tmp_path / "keys.json", tmp_path / "adapters.json"
    write_keys(keys, {"name": "web", "key": "web"}, {"name": "lab", "key": "lab"})
    write_adapter(tmp_path / "files" / "a.safetensors")
    secret = {"name": "secret", "source": "files/a.safetensors", "keys": ["lab"]}
    source = {"source": "hf://team/styles@v1", "file": "wanted.safetensors"}
    absent = {"name": "absent", "source": "hf://team/none", "keys": ["lab"]}
    down = {"name": "down", "source": f"hf://{DOWN}", "keys": ["lab"]}
    write_list(adapters, secret, {"name": "fetched", "scale": 0.75, **source}, absent, down)
    cache = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
    server = start("--adapters", str(adapters), "--api-keys-file", str(keys), **cache)

    server.http.headers.update(bearer("web"))
    assert {name: adapter["status"] for name, adapter in listed(server).items()} == {"fetched": "loading"}
    refused = server.create(adapters=[{"name": "fetched"}])
    check(refused, 503, "adapter_not_ready", "adapters")
    check(server.http.get("/v1/models/fake-model:fetched"), 503, "adapter_not_ready", "model")
    assert refused.headers["retry-after"] == "5"
    for body in ({"model": "fake-model:secret"}, {"adapters": [{"name": "secret"}]}):
        response = server.create(**body)
        assert response.status_code == 404
        assert "secret" not in response.json()["error"]["message"]
    assert server.create(bearer("lab"), adapters=[{"name": "secret"}]).status_code == 200

    hub.release.set()
    until(lambda: listed(server)["fetched"]["status"] == "ready")
    assert server.create(model="fake-model:fetched").status_code == 200
    request = server.state()["requests"][-1]
    assert request["adapters"][0]["scale"] == 0.75
    assert request["sampling"]["guidance_schedule"] == [1.0] * 4
    assert not any("other" in path for path in hub.served)

    server.http.headers.update(bearer("lab"))
    until(lambda: listed(server)["absent"]["status"] == "broken")
    until(lambda: listed(server)["down"]["error"])
    assert listed(server)["down"]["status"] == "loading"
    refused = server.create(model="fake-model:down")
    assert "503" in check(refused, 503, "adapter_not_ready", "model")["message"]
    assert refused.headers["retry-after"] == "60"
    adapters.write_text("{")
    until(lambda: "cannot reload adapters" in server.log)
    assert list(listed(server)) == ["absent", "down", "fetched", "secret"]
    write_list(adapters, secret)
    until(lambda: list(listed(server)) == ["secret"])


ENTRY, OTHER = {"name": "a", "source": "x"}, {"name": "b", "source": "x"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("{", "Invalid JSON"),
        ({"adapters": [ENTRY | {"scal": 1}]}, "adapters.0.scal: Extra inputs are not permitted"),
        ({"adapters": [ENTRY, ENTRY]}, "two entries have the name 'a'"),
        ({"adapters": [ENTRY | {"name": "a/b"}]}, "adapters.0.name: "),
        ({"adapters": [ENTRY | {"file": "a/../../o"}]}, "adapters.0.file: 'a/../../o' leads out of `source`"),
        ({"adapters": [ENTRY | {"file": "/o"}]}, "adapters.0.file: '/o' leads out of `source`"),
        ({"adapters": [ENTRY, OTHER | {"preset": FAST | {"mu": 11}}]}, "adapters.1.preset.mu: "),
    ],
)
def test_an_unusable_adapters_file_ends_the_start(tmp_path: Path, content: Any, reason: str) -> None:
    file = tmp_path / "adapters.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=r"^--adapters: ") as raised:
        Source(file, CONFIG)
    assert reason in str(raised.value)
