"""Tests of the balancers of deploy/examples with three servers: a rolling restart under load, a kill."""

import asyncio
import base64
import io
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.deploy import fleet
from tests.deploy.fleet import Balancer, Server, balancer
from tests.deploy.traffic import BODY, Outcome, ask, ask_again, load

EXAMPLES = ("nginx.conf", "haproxy.cfg", "envoy.yaml")
pytestmark = pytest.mark.anyio
# Runs long enough to be in flight when its server is killed.
LONG = BODY | {"size": "128x128", "num_inference_steps": 60}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        started = [stack.enter_context(closing(Server())) for _ in range(3)]
        for server in started:
            server.wait_ready()
        yield started


@pytest.fixture(scope="module")
def balancers(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Balancer]]:
    """All balancers share the servers, so that one rolling restart tests them all."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(balancer(name, servers, tmp_path_factory.mktemp(name))) for name in EXAMPLES
        ]


@pytest.fixture(scope="module")
def without_retries(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """HAProxy that relies on readiness alone."""
    with balancer("haproxy.cfg", servers, tmp_path_factory.mktemp("without"), retries=False) as started:
        yield started


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_balancer_is_terminated_when_its_setup_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(fleet, "wait", Mock(side_effect=TimeoutError))
    with pytest.raises(TimeoutError), balancer(name, [], tmp_path):
        pass
    assert started[0].returncode is not None


async def test_no_request_fails_in_a_rolling_restart(
    servers: list[Server], balancers: list[Balancer], without_retries: Balancer
) -> None:
    stop = asyncio.Event()
    balancers = [*balancers, without_retries]
    loads = [asyncio.create_task(load(each.url, stop)) for each in balancers]
    codes = [await asyncio.to_thread(server.restart) for server in servers]
    stop.set()
    assert codes == [0, 0, 0]
    results = dict(zip([each.name for each in balancers], await asyncio.gather(*loads), strict=True))
    for name, outcomes in results.items():
        kinds = Counter("stream" if outcome.is_stream else "json" for outcome in outcomes)
        print(f"{name}: {dict(kinds)}, by server {dict(Counter(o.server for o in outcomes))}")
        assert min(kinds["stream"], kinds["json"]) > 20
        assert {server.address for server in servers} <= {outcome.server for outcome in outcomes}
    assert [outcome for outcomes in results.values() for outcome in outcomes if outcome.error] == []


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
async def test_a_killed_server_fails_only_its_own_streams(
    servers: list[Server], balancers: list[Balancer], number: int
) -> None:
    """The balancer retries JSON requests on another server. The client retries streams with the same key."""
    async with httpx.AsyncClient(base_url=balancers[number].url, timeout=300) as client:
        victim = servers[number]
        outcomes = await _kill_under_load(client, victim)
        failed = [outcome for outcome in outcomes if outcome.error]
        print(f"{balancers[number].name}: {len(failed)} of {len(outcomes)} failed")
        assert failed
        assert [o for o in failed if not (o.is_stream and o.server == victim.address)] == []
        again = await asyncio.gather(*(ask_again(client, outcome) for outcome in failed))
    assert [outcome for outcome in again if outcome.error] == []
    # The same seed gives the same image, so a retry returns the image of the first attempt. Batches of other
    # sizes round differently.
    first, *others = [_pixels(outcome.image) for outcome in [*outcomes, *again] if outcome.image]
    assert max(np.abs(each - first).max() for each in others) <= 1
    victim.start()
    victim.wait_ready()


def _pixels(b64: str) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))), np.int16)


async def _kill_under_load(client: httpx.AsyncClient, victim: Server) -> list[Outcome]:
    """Kill a server while six streams and three JSON requests are in flight on three servers."""
    stream = LONG | {"stream": True, "seed": 7}
    begun = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(ask(client, stream, event)) for event in begun]
    tasks += [asyncio.create_task(ask(client, LONG | {"seed": 7})) for _ in range(3)]
    await asyncio.gather(*(event.wait() for event in begun))
    victim.kill()
    return await asyncio.gather(*tasks)
