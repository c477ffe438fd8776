"""Measure the cost of the HTTP process with the tests' fake engine: `python -m benchmarks.frontend`.

Reports the processor time of a request compared with a minimal FastAPI application on the same uvicorn, the
request rate under load, and the longest stall of the event loop. Processor time does not depend on other
load, but the stall does: run this on an idle machine.
"""

import os
import socket
import time
from collections.abc import Callable

from fastapi import FastAPI, Request

from tests.server.process import ServerProcess, small
from tests.server.soak import Soak

COUNT = 2000
SOAK_FLAGS = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")


def main() -> None:
    hello = ServerProcess(module="benchmarks.frontend", SERVE_HELLO="1")
    ours = ServerProcess("--log-level", "warning")
    logging = ServerProcess()
    body = small(num_inference_steps=1, seed=1)
    baseline = cpu_seconds(hello, lambda: hello.http.post("/", json=body))
    report("minimal FastAPI, POST of JSON", baseline)
    report("GET /healthz", cpu_seconds(ours, lambda: ours.http.get("/healthz")), baseline)
    report("POST /v1/images refused (400)", cpu_seconds(ours, lambda: ours.create(n=0)), baseline)
    report(
        "POST /v1/images, 64x64 PNG as JSON",
        cpu_seconds(ours, lambda: ours.http.post("/v1/images", json=body)),
        baseline,
    )
    report(
        "the same with request log",
        cpu_seconds(logging, lambda: logging.http.post("/v1/images", json=body)),
        baseline,
    )
    for server in (hello, ours, logging):
        server.close()
    soak()
    png()


def soak() -> None:
    server = ServerProcess(*SOAK_FLAGS)
    Soak(server.port, requests=200, concurrency=32, leaving=0.2).run()
    server.http.get("/_fake/stall")
    server.http.get("/_fake/stall")
    started = time.perf_counter()
    run = Soak(server.port, requests=COUNT, concurrency=32, leaving=0.2).run()
    seconds = time.perf_counter() - started
    stall = server.http.get("/_fake/stall").json()
    print(f"soak: {run.answered} answered, {run.left} left, {COUNT / seconds:.0f} requests/s")
    wall, own = stall["wall"] * 1000, stall["own"] * 1000
    print(f"soak: longest stall of the event loop {wall:.1f} ms, longest own work {own:.1f} ms")
    server.close()


def png() -> None:
    """Measure the stall that encoding one large image causes, with noise as the worst case."""
    import asyncio

    from server.generation.image_encoder import ImageEncoder

    async def run(size: int) -> tuple[float, float, int]:
        encoder, rgb, worst = ImageEncoder(1, 1), os.urandom(size * size * 3), 0.0
        started = time.perf_counter()
        task = asyncio.create_task(encoder.encode(rgb, (size, size), "png", 100, {}))
        while not task.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)
        return time.perf_counter() - started, worst, len(task.result())

    for size in (1024, 2048):
        seconds, worst, length = asyncio.run(run(size))
        stalled = f"loop stalled {worst * 1000:.1f} ms"
        print(f"png {size}x{size} of noise: {seconds:.2f} s, {length >> 10} KiB, {stalled}")


def cpu_seconds(server: ServerProcess, ask: Callable[[], object], count: int = 500) -> float:
    """Processor seconds of the server process per request, over one keep-alive connection."""
    for _ in range(50):
        ask()
    before = _cpu(server.process.pid)
    for _ in range(count):
        ask()
    return (_cpu(server.process.pid) - before) / count


def _cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(name: str, seconds: float, baseline: float | None = None) -> None:
    beside = f"  ({(seconds - baseline) * 1e6:+.0f} us, x{seconds / baseline:.1f})" if baseline else ""
    print(f"{name:40} {seconds * 1e6:7.0f} us of processor time{beside}")


def serve_hello() -> None:
    """Serve the baseline: FastAPI that reads and returns JSON, on uvicorn with h11."""
    import uvicorn

    app = FastAPI()

    @app.post("/")
    async def hello(request: Request) -> dict[str, str]:
        await request.json()
        return {"hello": "world"}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, http="h11", log_config=None, access_log=False)).run([listener])


if __name__ == "__main__":
    serve_hello() if "SERVE_HELLO" in os.environ else main()
