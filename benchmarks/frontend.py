"""Measure the cost of the HTTP process with the tests' fake engine: `python -m benchmarks.frontend`.

Reports the processor time of a request compared with a minimal FastAPI application on the same uvicorn, the
request rate under load, and the longest stall of the event loop. Processor time does not depend on other
load, but the stall does: run this on an idle machine.
"""

import argparse
import asyncio
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request

from benchmarks.report import Report, add_arguments, progress
from engine.config.model_config import ModelConfig
from engine.messages import ImageDone
from server.generation import image_encoder
from server.generation.image_encoder import ImageEncoder
from server.settings.settings import Settings
from tests.server.process import ServerProcess, small
from tests.server.soak import Soak

MODEL = "models/demo"
COUNT = 2000
REQUESTS = {"what": "<34", "CPU, us": "7.0f", "ratio": "5.1f"}
SOAK = {"answered": "8d", "left": "4d", "requests/s": "10.0f", "stall, ms": "9.1f", "own work, ms": "12.1f"}
PNG = {"side": "4d", "seconds": "7.2f", "KiB": "6d", "stall, ms": "9.1f"}
SOAK_FLAGS = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontend", description=__doc__)
    add_arguments(parser)
    report = Report("frontend", parser.parse_args(), requests=REQUESTS, soak=SOAK, png=PNG)
    hello = ServerProcess(module="benchmarks.frontend", SERVE_HELLO="1")
    ours = ServerProcess("--log-level", "warning")
    logging = ServerProcess()
    body = small(num_inference_steps=1, seed=1)
    requests: dict[str, tuple[ServerProcess, Callable[[], object]]] = {
        "minimal FastAPI, POST of JSON": (hello, lambda: hello.http.post("/", json=body)),
        "GET /healthz": (ours, lambda: ours.http.get("/healthz")),
        "POST /v1/images refused (400)": (ours, lambda: ours.create(n=0)),
        "POST /v1/images, 64x64 PNG as JSON": (ours, lambda: ours.http.post("/v1/images", json=body)),
        "the same with request log": (logging, lambda: logging.http.post("/v1/images", json=body)),
    }
    for what, (server, ask) in progress(requests.items(), "requests"):
        seconds = cpu_seconds(server, ask)
        first = next((row["CPU, us"] for row in report.rows("requests")), seconds * 1e6)
        report.add("requests", **{"what": what, "CPU, us": seconds * 1e6, "ratio": seconds * 1e6 / first})
    for server in (hello, ours, logging):
        server.close()
    report.add("soak", **soak())
    for size in (1024, 2048):
        report.add("png", **asyncio.run(png(size)))


def soak() -> dict[str, float]:
    """The request rate under load and the longest stall of the event loop."""
    server = ServerProcess(*SOAK_FLAGS)
    Soak(server.port, requests=200, concurrency=32, leaving=0.2).run()
    server.http.get("/_fake/stall")
    server.http.get("/_fake/stall")
    started = time.perf_counter()
    run = Soak(server.port, requests=COUNT, concurrency=32, leaving=0.2).run()
    seconds = time.perf_counter() - started
    stall = server.http.get("/_fake/stall").json()
    server.close()
    stalls = {"stall, ms": stall["wall"] * 1000, "own work, ms": stall["own"] * 1000}
    return {"answered": run.answered, "left": run.left, "requests/s": COUNT / seconds, **stalls}


async def png(size: int) -> dict[str, float]:
    """The stall that encoding one large image causes, with noise as the worst case."""
    settings, worst = Settings.model_validate({"model": MODEL}), 0.0
    encoder = ImageEncoder(settings, lambda: ModelConfig.load(Path(MODEL)))
    image = ImageDone("png", 0, 0, size, size, os.urandom(size * size * 3))
    save = partial(image_encoder._save, compress_level=settings.png_compress_level)
    started = time.perf_counter()
    task = asyncio.create_task(encoder.run(save, image, "png"))
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - before - 0.001)
    seconds, length = time.perf_counter() - started, len(await task)
    return {"side": size, "seconds": seconds, "KiB": length >> 10, "stall, ms": worst * 1000}


def cpu_seconds(server: ServerProcess, ask: Callable[[], object], count: int = 500) -> float:
    """Processor seconds of the server process per request, over one keep-alive connection."""
    for _ in range(50):
        ask()
    before = processor_seconds(server.process.pid)
    for _ in range(count):
        ask()
    return (processor_seconds(server.process.pid) - before) / count


def processor_seconds(pid: int) -> float:
    """That a process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
