"""The second part of `benchmarks.versus`: both servers under concurrent HTTP requests."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.variants import TURBO
from tests.server.process import ServerProcess, until

BAR = 1.4
SHARE_BAR = 0.05
# Side in pixels and prompt tokens of the concurrent requests.
MIXED = ((256, 30), (512, 30), (256, 300), (256, 60), (512, 120), (256, 30), (256, 100), (256, 200))


def compare(path: Path, dtype: str, steps: int, rounds: int) -> None:
    """Compare the time to answer all of MIXED at once: this server against `benchmarks.diffusers_server`."""
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
    print_share(servers["ours"], steps)
    for turn in range(rounds):
        for name, server in servers.items():
            seconds[name].append(all_at_once(server, turn, steps))
    for server in servers.values():
        server.close()
    ours, theirs = (median(seconds[name]) for name in servers)
    print(
        f"{dtype}: {len(MIXED)} concurrent requests, {steps} steps each, seconds to the last answer: ", end=""
    )
    print(f"ours {ours:.1f}, diffusers behind FastAPI {theirs:.1f}: {theirs / ours:.2f} (bar {BAR})")


def print_share(server: ServerProcess, steps: int) -> None:
    """Print the share of a 512 px request that is spent outside the engine: HTTP, queue, pipe, PNG."""
    shares = []
    for seed in range(3):
        body = {"prompt": "a", "size": "512x512", "seed": seed, "num_inference_steps": steps}
        started = time.perf_counter()
        response = server.http.post("/v1/images", json=body | {"guidance_scale": 7.0}, timeout=3600)
        seconds = time.perf_counter() - started
        stages = dict(stage.split(";dur=") for stage in response.headers["Server-Timing"].split(", "))
        engine = sum(float(stages[name]) for name in ("encode", "denoise", "decode")) / 1000
        shares.append(1 - engine / seconds)
    share = f"{median(shares):.2%} (bar {SHARE_BAR:.0%})"
    print(f"outside the engine, one request of 512 px, {steps} steps: {share}", flush=True)


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
