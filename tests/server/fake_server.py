"""`python -m tests.server.fake_server FLAGS`: the real server process over the fake engine.

`/_fake/...` lets a test see the engine and steer it without guessing at times.
"""

import asyncio
import dataclasses
import gc
import os
import sys
import time
from collections import Counter
from typing import Any

from fastapi import APIRouter, FastAPI, Request

from engine.request import EngineRequest
from server.adapters import catalog
from server.adapters.catalog import Catalog
from server.app import create_app, run
from server.queue.roles import queue_access
from server.settings.config_error import ConfigError
from server.settings.settings import Settings, read_settings
from server.transport.server import listen
from tests.server.fake_engine import CONFIG, FakeEngine


def control(engine: FakeEngine) -> APIRouter:
    router = APIRouter(prefix="/_fake", include_in_schema=False)
    stalls = Stalls()

    @router.get("/state")
    async def state() -> dict[str, Any]:
        requests = [_facts(request) for request in engine.requests]
        running = [_facts(request) for request in engine.running_requests]
        return {"requests": requests, "running_requests": running, **counts(engine)}

    @router.get("/wait")
    async def wait(request: Request) -> dict[str, int]:
        """Until every count named in the query has its value."""
        wanted = {name: int(value) for name, value in request.query_params.items()}
        await engine.wait_for(lambda: wanted.items() <= counts(engine).items())
        return counts(engine)

    @router.get("/alive")
    async def alive() -> dict[str, int]:
        """Objects of the request's path that are still there: a leak shows as a count that grows."""
        gc.collect()
        counted = Counter(type(thing).__name__ for thing in gc.get_objects())
        names = ("Generation", "AdmissionSlot", "RequestRecord", "EngineRequest", "Task")
        return {name: counted[name] for name in names}

    @router.get("/stall")
    async def stall() -> dict[str, float]:
        """The event loop's worst stall since the last call."""
        await asyncio.sleep(2 * Stalls.EVERY)  # the look after a stall that has just ended comes first
        return stalls.worst()

    @router.post("/release")
    async def release() -> None:
        await engine.resume()

    @router.post("/set")
    async def set_(request: Request) -> None:
        for name, value in (await request.json()).items():
            setattr(engine, name, value)

    return router


def _facts(request: EngineRequest) -> dict[str, Any]:
    """As JSON: the bytes of a source as their number, and what its mask paints as a share."""
    facts = dataclasses.asdict(dataclasses.replace(request, source=None))
    if (source := request.source) is not None:
        painted = None if source.mask is None else sum(source.mask) / len(source.mask) / 255
        facts["source"] = {
            "bytes": len(source.rgb),
            "painted": painted,
            "strength": source.strength,
            "fingerprint": source.fingerprint,
        }
    return facts


class Stalls:
    """Looks every two milliseconds how late it is, and how much of that the loop's thread worked itself."""

    EVERY = 0.002

    def __init__(self) -> None:
        self._worst = self._worst_own = 0.0
        self._task: asyncio.Task[None] | None = None

    def worst(self) -> dict[str, float]:
        """Seconds since the last call: `wall`, and `own` processor time. The first call starts the watch."""
        self._task = self._task or asyncio.create_task(self._watch())
        worst = {"wall": self._worst, "own": self._worst_own}
        self._worst = self._worst_own = 0.0
        return worst

    async def _watch(self) -> None:
        while True:
            expected, worked = time.perf_counter() + self.EVERY, time.thread_time()
            await asyncio.sleep(self.EVERY)
            self._worst = max(self._worst, time.perf_counter() - expected)
            self._worst_own = max(self._worst_own, time.thread_time() - worked)


def counts(engine: FakeEngine) -> dict[str, int]:
    return {"running": engine.running, "finished": engine.finished, "aborted": engine.aborted}


def fake_engine() -> FakeEngine:
    """Up to FAKE_MAX_SIZE pixels a side, of the model FAKE_MODEL and its checkpoint FAKE_CHECKPOINT, where
    the environment says so."""
    limits = dataclasses.replace(CONFIG.limits, max_size=int(os.environ.get("FAKE_MAX_SIZE", "256")))
    model_id = os.environ.get("FAKE_MODEL", CONFIG.model_id)
    checkpoint = os.environ.get("FAKE_CHECKPOINT", CONFIG.fingerprint)
    return FakeEngine(dataclasses.replace(CONFIG, limits=limits, model_id=model_id, fingerprint=checkpoint))


def set_clock(seconds: float) -> None:
    """Let the clock of this process be ahead."""
    right = time.time
    time.time = lambda: right() + seconds


def main() -> int:
    set_clock(float(os.environ.get("FAKE_CLOCK_SECONDS", "0")))
    catalog.MIN_PAUSE = 0.05  # so that tests need not wait a second for a change of adapters
    settings = read_settings(["--model", "fake", *sys.argv[1:]])
    try:
        with queue_access(settings) as access:
            engine = fake_engine()
            engine.max_batch_size = settings.max_batch_size
            app = _app(settings, access, engine, Catalog.of(settings, engine.config))
            app.include_router(control(engine))
            return run(app, listen(settings))
    except ConfigError as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return 2


def _app(settings: Settings, access: Any, engine: FakeEngine, adapters: Catalog) -> FastAPI:
    if access is None:
        return create_app(settings, engine, adapters=adapters)
    from server.queue.queue_engine import QueueEngine

    made = QueueEngine(
        engine.config,
        settings,
        access,
        adapters,
        local=None if settings.role == "front" else engine,
        tokenize=None if settings.role == "worker" else engine.tokenize,
        beat_seconds=float(os.environ.get("FAKE_BEAT_SECONDS", "1")),
    )
    broker = None if settings.role == "worker" else made.broker
    return create_app(settings, made, made, broker, adapters)


if __name__ == "__main__":
    sys.exit(main())
