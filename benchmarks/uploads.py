"""Measure uploads of images with the tests' fake engine: `python -m benchmarks.uploads`.

Reports the processor time of an edit in the HTTP process and in its decoder, the rate of uploads, and what
each file of the tests' hostile list costs. Processor time does not depend on other load, but rates and
seconds do: run this on an idle machine.
"""

import argparse
import base64
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from PIL import Image

from benchmarks.frontend import processor_seconds
from benchmarks.report import Report, add_arguments, progress
from tests.server.edits.client import EDITS, decoders, edit, peak_bytes
from tests.server.edits.pictures import HOSTILE, encoded, noise
from tests.server.process import ServerProcess

REQUESTS = {"what": "<40", "MB": "5.1f", "server CPU, ms": "14.1f", "decoder CPU, ms": "15.1f"}
RATE = {"clients": "7d", "uploads/s": "9.1f", "MB/s": "6.0f", "stall, ms": "9.1f", "own work, ms": "12.1f"}
FILES = {
    "file": "<34",
    "kB": "7.0f",
    "status": "6d",
    "seconds": "7.2f",
    "CPU, s": "6.2f",
    "decoder MB": "10.0f",
    "server MB": "9.0f",
}
FLAGS = ("--log-level", "warning", "--max-backlog-seconds", "86400")
# At strength 1 the fake engine does not blend.
LARGE: Any = {"size": "1024x1024", "num_inference_steps": "1", "strength": "1"}
MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uploads", description=__doc__)
    add_arguments(parser)
    report = Report("uploads", parser.parse_args(), requests=REQUESTS, rate=RATE, files=FILES)
    server = ServerProcess(*FLAGS, FAKE_MAX_SIZE="1024")
    for what, size, ask in progress(list(requests(server)), "requests"):
        own, other = cpu_seconds(server, ask)
        milliseconds = {"server CPU, ms": own * 1000, "decoder CPU, ms": other * 1000}
        report.add("requests", what=what, MB=size / 1e6, **milliseconds)
    for clients in (1, 8):
        report.add("rate", clients=clients, **rate(server, clients))
    server.close()
    for name in progress(HOSTILE, "files"):
        report.add("files", file=name, **cost(name))


def photo(side: int, kind: str, **options: Any) -> bytes:
    """A picture with detail everywhere."""
    smooth = Image.effect_noise((side // 4, side // 4), 90).convert("RGB").resize((side, side))
    return encoded(smooth, kind, **options)


def requests(server: ServerProcess) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What, the bytes of the image, and the request."""
    body = {"prompt": "a cat", "size": "1024x1024", "num_inference_steps": 1, "strength": 1}
    plain = {name: body[name] for name in body if name != "strength"}
    yield "POST /v1/images, 1024x1024", 0, lambda: server.http.post("/v1/images", json=plain)
    jpeg, png = photo(2500, "jpeg", quality=97), encoded(noise(1160, 1160))
    yield "edit of a JPEG of 6 megapixels", len(jpeg), lambda: edit(server, jpeg, **LARGE)
    yield "edit of a PNG of 1.3 megapixels", len(png), lambda: edit(server, png, **LARGE)
    encoded_jpeg = base64.b64encode(jpeg).decode()
    sent = {**body, "image": encoded_jpeg}
    yield "edit of the JPEG, as JSON", len(jpeg), lambda: server.http.post(EDITS, json=sent)


def cpu_seconds(server: ServerProcess, ask: Callable[[], object], count: int = 15) -> tuple[float, float]:
    """Processor seconds of a request in the server and in its decoders."""
    for _ in range(3):
        ask()
    before = processor_seconds(server.process.pid), sum(map(processor_seconds, decoders(server)))
    for _ in range(count):
        ask()
    after = processor_seconds(server.process.pid), sum(map(processor_seconds, decoders(server)))
    return (after[0] - before[0]) / count, (after[1] - before[1]) / count


def rate(server: ServerProcess, clients: int, count: int = 24) -> dict[str, float]:
    """Uploads of a JPEG of 4 MB by clients at the same time, and the longest stall of the event loop."""
    jpeg = photo(2500, "jpeg", quality=97)
    server.http.get("/_fake/stall")
    server.http.get("/_fake/stall")
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda _: edit(server, jpeg, size="256x256"), range(count)))
    seconds = time.perf_counter() - started
    assert {answer.status_code for answer in answers} == {200}
    stall = server.http.get("/_fake/stall").json()
    stalls = {"stall, ms": stall["wall"] * 1000, "own work, ms": stall["own"] * 1000}
    return {"uploads/s": count / seconds, "MB/s": count * len(jpeg) / seconds / 1e6, **stalls}


def cost(name: str) -> dict[str, float]:
    """Of a hostile file, on a server of its own."""
    data = HOSTILE[name][0]()
    server = ServerProcess("--log-level", "warning")
    edit(server)
    server.peak_bytes()
    watcher, peaks, spent = ThreadPoolExecutor(1), [0], [0.0]
    before = {pid: processor_seconds(pid) for pid in decoders(server)}
    started = time.perf_counter()
    sending = watcher.submit(edit, server, data)
    while not sending.done():
        for pid in decoders(server):
            peaks.append(peak_bytes(pid))
            with suppress(OSError):
                spent.append(processor_seconds(pid) - before.get(pid, 0.0))
        with suppress(TimeoutError):
            sending.result(0.005)
    seconds, answer = time.perf_counter() - started, sending.result()
    spent += [processor_seconds(pid) - before.get(pid, 0.0) for pid in decoders(server)]
    memory = {"decoder MB": max(peaks) / MEBIBYTE, "server MB": server.peak_bytes() / MEBIBYTE}
    server.close()
    return {
        "kB": len(data) / 1000,
        "status": answer.status_code,
        "seconds": seconds,
        "CPU, s": max(spent),
        **memory,
    }


if __name__ == "__main__":
    main()
