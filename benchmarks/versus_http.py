"""Compare this server with diffusers behind FastAPI: `python -m benchmarks.versus_http`.

Both serve the benchmark model. Eight requests of mixed sizes and prompts are sent at once; the time ends with
the last answer. Also measures the share of one 512 px request that is spent outside the engine.
"""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.bench_model import DITS, write_bench_model
from benchmarks.report import Report, Row, add_arguments, progress, several, verdict
from benchmarks.variants import TURBO
from tests.server.process import ServerProcess, until

BAR = 1.7
SHARE_BAR = 0.05
# Side in pixels and prompt tokens of the concurrent requests.
MIXED = ((256, 30), (512, 30), (256, 300), (256, 60), (512, 120), (256, 30), (256, 100), (256, 200))
SERVERS = {
    "model": "<9",
    "dtype": "<8",
    "requests": "8d",
    "ours": "8.1f",
    "diffusers": "9.1f",
    "ratio": "5.2f",
    "bar": "4.2f",
    "verdict": "<6",
    "outside": "7.2%",
}


def compare(path: Path, dtype: str, options: argparse.Namespace) -> Row:
    """Seconds until all of MIXED are answered, by this server and by `benchmarks.diffusers_server`."""
    flags = ("--model", str(path), "--dtype", dtype)
    patience = ("--max-backlog-seconds", "86400", "--max-request-seconds", "86400")
    servers = {
        "ours": ServerProcess(
            *flags, *patience, "--compile", "true", "--log-level", "error", module="server"
        ),
        "diffusers": ServerProcess(*flags, module="benchmarks.diffusers_server"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    until(lambda: servers["ours"].http.get("/readyz").status_code == 200)
    outside = share_outside(servers["ours"], options.steps)
    for turn in progress(range(options.rounds), dtype):
        for name, server in servers.items():
            seconds[name].append(all_at_once(server, turn, options.steps))
    for server in servers.values():
        server.close()
    return {**{name: median(taken) for name, taken in seconds.items()}, "outside": outside}


def share_outside(server: ServerProcess, steps: int) -> float:
    """The share of a 512 px request that is spent outside the engine: HTTP, queue, pipe, PNG."""
    shares = []
    for seed in range(3):
        body = {"prompt": "a", "size": "512x512", "seed": seed, "num_inference_steps": steps}
        started = time.perf_counter()
        response = server.http.post("/v1/images", json=body | {"guidance_scale": 7.0}, timeout=3600)
        seconds = time.perf_counter() - started
        stages = dict(stage.split(";dur=") for stage in response.headers["Server-Timing"].split(", "))
        engine = sum(float(stages[name]) for name in ("encode", "denoise", "decode")) / 1000
        shares.append(1 - engine / seconds)
    return median(shares)


def all_at_once(server: ServerProcess, turn: int, steps: int) -> float:
    """Seconds until the last request is answered. Prompts differ in each round, so that none is cached."""

    def ask(index: int) -> None:
        side, tokens = MIXED[index]
        body = {"prompt": " a" * (tokens - 14) + f" {turn}{index}", "size": f"{side}x{side}", "seed": index}
        sampling = {"num_inference_steps": steps, "guidance_scale": 7.0, "mu": TURBO.mu, "std": TURBO.std}
        server.http.post("/v1/images", json=body | sampling, timeout=3600).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(len(MIXED)) as threads:
        list(threads.map(ask, range(len(MIXED))))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus_http", description=__doc__)
    parser.add_argument("--models", type=several(str), default=["heads-256"], help=f"of {', '.join(DITS)}")
    parser.add_argument("--dtypes", type=several(str), default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=4, help="steps of each request")
    parser.add_argument("--rounds", type=int, default=1)
    add_arguments(parser)
    options = parser.parse_args()
    report = Report("versus-http", options, servers=SERVERS)
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / model
            write_bench_model(path, DITS[model])
            for dtype in options.dtypes:
                cells = compare(path, dtype, options)
                ratio = cells["diffusers"] / cells["ours"]
                rated = {"ratio": ratio, "bar": BAR, "verdict": verdict(ratio, BAR)}
                report.add("servers", model=model, dtype=dtype, requests=len(MIXED), **cells, **rated)


if __name__ == "__main__":
    main()
