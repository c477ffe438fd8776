"""Three servers behind each balancer of deploy/examples: a rolling restart under load, and a kill -9."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.fleet import Balancer, Server, start_balancer
from tests.deploy.traffic import BODY, Outcome, ask, ask_again, load

EXAMPLES = ("nginx.conf", "haproxy.cfg", "envoy.yaml")
pytestmark = pytest.mark.anyio
# Long enough to be in flight when its server is killed.
LONG = BODY | {"size": "128x128", "num_inference_steps": 60}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    started = [Server() for _ in range(3)]
    for server in started:
        server.wait_ready()
    yield started
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def balancers(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Balancer]]:
    """All in front of the same servers, so that one restart tries every one."""
    started: list[Balancer] = []
    for name in EXAMPLES:
        started.append(start_balancer(name, servers, tmp_path_factory.mktemp(name)))
    yield started
    for balancer in started:
        balancer.close()


@pytest.fixture(scope="module")
def unrepeating(servers: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """It has nothing but readiness to go by."""
    balancer = start_balancer("haproxy.cfg", servers, tmp_path_factory.mktemp("unrepeating"), repeats=False)
    yield balancer
    balancer.close()


async def test_no_request_fails_in_a_rolling_restart(
    servers: list[Server], balancers: list[Balancer], unrepeating: Balancer
) -> None:
    stop = asyncio.Event()
    balancers = [*balancers, unrepeating]
    loads = [asyncio.create_task(load(balancer.url, stop)) for balancer in balancers]
    codes = [await asyncio.to_thread(server.restart) for server in servers]
    stop.set()
    assert codes == [0, 0, 0]
    results = dict(zip([balancer.name for balancer in balancers], await asyncio.gather(*loads), strict=True))
    for name, outcomes in results.items():
        kinds = Counter("stream" if outcome.is_stream else "json" for outcome in outcomes)
        print(f"{name}: {dict(kinds)}, by server {dict(Counter(o.server for o in outcomes))}")
        assert min(kinds["stream"], kinds["json"]) > 20
        assert {server.address for server in servers} <= {outcome.server for outcome in outcomes}
    assert [outcome for outcomes in results.values() for outcome in outcomes if outcome.fault] == []


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLES)
async def test_a_kill_fails_only_the_streams_of_the_dead(
    servers: list[Server], balancers: list[Balancer], number: int
) -> None:
    """JSON that the dead server had is asked of another one; a retry with its key gets the rest."""
    async with httpx.AsyncClient(base_url=balancers[number].url, timeout=300) as client:
        victim = servers[number]
        outcomes = await _kill_under_load(client, victim)
        failed = [outcome for outcome in outcomes if outcome.fault]
        print(f"{balancers[number].name}: {len(failed)} of {len(outcomes)} failed")
        assert failed
        assert [o for o in failed if not (o.is_stream and o.server == victim.address)] == []
        again = await asyncio.gather(*(ask_again(client, outcome) for outcome in failed))
    assert [outcome for outcome in again if outcome.fault] == []
    # One seed, one image: what was retried is what would have come.
    assert len({outcome.image for outcome in [*outcomes, *again] if outcome.image}) == 1
    victim.start()
    victim.wait_ready()


async def _kill_under_load(client: httpx.AsyncClient, victim: Server) -> list[Outcome]:
    """Six streams and three plain requests in flight on three servers when one of them dies."""
    stream = LONG | {"stream": True, "seed": 7}
    begun = [asyncio.Event() for _ in range(6)]
    tasks = [asyncio.create_task(ask(client, stream, event)) for event in begun]
    tasks += [asyncio.create_task(ask(client, LONG | {"seed": 7})) for _ in range(3)]
    await asyncio.gather(*(event.wait() for event in begun))
    victim.kill()
    return await asyncio.gather(*tasks)
