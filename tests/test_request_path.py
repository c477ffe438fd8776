"""`docs/architecture.md` lists every file that a JSON request enters."""

import json
import re
import time
from pathlib import Path

from tests.recording_server import FOLDER, ROOT
from tests.server.edits.client import edit, made
from tests.server.edits.pictures import encoded, halves, hole
from tests.server.process import ServerProcess, until

PAGE = ROOT / "docs/architecture.md"
# Not part of a request, but may run at the same time.
PERIODIC = {"server/transport/server.py", "engine/client/heartbeat_monitor.py"}
# Depends on the instruction sets of the CPU, or on measured durations.
SOMETIMES = {"engine/kernels/linear.py", "engine/worker/calibration.py"}


def entered(folder: Path) -> list[str]:
    """The files that a JSON request enters, in order, over both processes."""
    server = ServerProcess(
        "--model",
        str(ROOT / "models/demo"),
        module="tests.recording_server",
        OMP_NUM_THREADS="1",
        **{FOLDER: str(folder)},
    )
    try:
        until(lambda: server.http.get("/readyz").status_code == 200)
        started = time.monotonic()
        response = server.create(preset="V4_TURBO_12")
        server.logged(path="/v1/images")
        ended = time.monotonic()
        check_edit(server)
        server.terminate()
        assert server.exit_code() == 0
    finally:
        server.close()
    assert response.status_code == 200, response.text
    recorded = sorted(pair for file in folder.glob("*.json") for pair in json.loads(file.read_text()))
    return list(dict.fromkeys(file for at, file in recorded if started <= at <= ended))


def check_edit(server: ServerProcess) -> None:
    """Of the real engine: a mask keeps every other pixel, and strength 0 draws nothing of the seed."""
    image, png = halves(128, 128), {"Accept": "image/png"}
    few = {"num_inference_steps": "4"}
    mask = encoded(hole(128, 128, (0, 0, 64, 128)))
    painted = made(edit(server, encoded(image), mask, png, **few))
    assert painted.crop((64, 0, 128, 128)).tobytes() == image.crop((64, 0, 128, 128)).tobytes()
    assert painted.crop((0, 0, 64, 128)).getcolors() != image.crop((0, 0, 64, 128)).getcolors()
    first, second = (edit(server, encoded(image), None, png, strength="0", seed=seed, **few) for seed in "12")
    assert made(first).tobytes() == made(second).tobytes()


def test_the_page_lists_the_files_that_a_request_enters(tmp_path: Path) -> None:
    _, _, section = PAGE.read_text("utf-8").partition("## The path of a request")
    rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    listed = {file for row in rows for file in re.findall(r"`(.*?)`", row)}
    files = set(entered(tmp_path))
    assert files - listed - PERIODIC == set()
    assert listed - files - SOMETIMES == set()
