"""Adapters in a fleet: a request runs where its files are."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.errors import (
    AdapterFailedError,
    AdaptersTooLargeError,
    AdapterUnavailableError,
    EngineError,
)
from server.queue.wire import Done, decode, encode
from tests.server.adapters.files import write_adapter
from tests.server.process import ServerProcess, until
from tests.server.queue.fleet import Fleet, ready, submit
from tests.server.routes.test_errors import check


def folder(path: Path, **seeds: int) -> Path:
    """A folder with an adapter of each name."""
    path.mkdir()
    for name, seed in seeds.items():
        write_adapter(path / f"{name}.safetensors", seed)
    return path


@pytest.mark.parametrize("kind", [AdapterFailedError, AdaptersTooLargeError, AdapterUnavailableError])
def test_errors_of_adapters_cross_the_queue(kind: type[EngineError]) -> None:
    done = decode(encode(Done.failed(kind("The adapter `red` is at fault"))), Done)
    error = done.exception()
    assert (type(error), str(error)) == (kind, "The adapter `red` is at fault")


def uses(worker: ServerProcess) -> list[dict[str, Any]]:
    return [use for request in worker.state()["requests"] for use in request["adapters"]]


def test_a_request_runs_where_its_adapter_is(fleet: Fleet, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    first, second = folder(tmp_path / "first", red=1), folder(tmp_path / "second", blue=2, new=4)
    both = folder(tmp_path / "front", red=1, blue=2, green=3)
    workers = [fleet.worker("--adapters", str(path)) for path in (first, second)]
    front = fleet.front("--adapters", str(both))
    ready(*workers, front)
    names = ("red", "blue", "green")
    bodies = {name: [{"name": name, "scale": 0.5}] for name in names}
    held = [submit(pool, front, prompt="hold: x", adapters=bodies["blue"]) for _ in range(4)]
    workers[1].wait(running=4)  # so that the first one is served before it
    answers = {name: [submit(pool, front, adapters=bodies[name]) for _ in range(2)] for name in names}
    write_adapter(both / "new.safetensors", 4)
    for name, path, worker, count in zip(("red", "blue"), (first, second), workers, (2, 6), strict=False):
        file = path / f"{name}.safetensors"
        for answer in answers[name]:
            assert answer.result().status_code == 200, answer.result().text
        found = {"path": str(file), "digest": hashlib.sha256(file.read_bytes()).hexdigest(), "scale": 0.5}
        assert [found.items() <= use.items() for use in uses(worker)] == [True] * count
    for answer in answers["green"]:
        message = check(answer.result(), 503, "adapter_unavailable", "adapters")["message"]
        assert message.startswith("No worker has the file of the adapter `green` with SHA-256 ")
    workers[1].release()
    assert {each.result().status_code for each in held} == {200}
    until(lambda: front.create(model=f"{fleet.model}:new").status_code == 200)
    assert [use["name"] for use in uses(workers[1])].count("new") == 1
