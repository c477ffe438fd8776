"""`python -m tests.server.fake_server FLAGS`: the real server process over the fake engine.

`/_fake/...` lets a test see the engine and steer it without guessing at times.
"""

import asyncio
import dataclasses
import gc
import sys
import time
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request

from server.app import create_app
from server.auth import KeyFileError
from server.serving import serve
from server.settings import read_settings
from tests.server.fake_engine import FakeEngine


def control(engine: FakeEngine) -> APIRouter:
    router = APIRouter(prefix="/_fake", include_in_schema=False)
    stalls = Stalls()

    @router.get("/state")
    async def state() -> dict[str, Any]:
        requests = [dataclasses.asdict(request) for request in engine.requests]
        return {"requests": requests, **counts(engine)}

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
        return {name: counted[name] for name in ("Generation", "Ticket", "Record", "EngineRequest", "Task")}

    @router.get("/stall")
    async def stall() -> float:
        """The event loop's worst lateness, in seconds, since the last call."""
        return stalls.worst()

    @router.post("/release")
    async def release() -> None:
        await engine.release()

    @router.post("/set")
    async def set_(request: Request) -> None:
        for name, value in (await request.json()).items():
            setattr(engine, name, value)

    return router


class Stalls:
    """Looks every two milliseconds how late it is."""

    EVERY = 0.002

    def __init__(self) -> None:
        self._worst = 0.0
        self._task: asyncio.Task[None] | None = None

    def worst(self) -> float:
        """Starts the watch at its first call."""
        self._task = self._task or asyncio.create_task(self._watch())
        worst, self._worst = self._worst, 0.0
        return worst

    async def _watch(self) -> None:
        while True:
            expected = time.perf_counter() + self.EVERY
            await asyncio.sleep(self.EVERY)
            self._worst = max(self._worst, time.perf_counter() - expected)


def counts(engine: FakeEngine) -> dict[str, int]:
    return {"running": engine.running, "finished": engine.finished, "aborted": engine.aborted}


def main() -> int:
    engine = FakeEngine()
    try:
        app = create_app(read_settings(["--model", "fake", *sys.argv[1:]]), engine)
    except KeyFileError as error:
        print(f"ideoserve: {error}", file=sys.stderr)
        return 2
    app.include_router(control(engine))
    return serve(app)


if __name__ == "__main__":
    sys.exit(main())
