"""The real server and engine, which record when they enter a file: `python -m tests.recording_server FLAGS`.

Each process writes (seconds, file) pairs to the folder RECORDINGS when it exits. Imports do not count.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from engine.worker import main as worker

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(f"{ROOT / package}{os.sep}" for package in ("engine", "server"))
FOLDER = "RECORDINGS"

_entered: list[tuple[float, str]] = []


def _record(frame: FrameType, event: str, _: Any) -> None:
    code = frame.f_code
    if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(PACKAGES):
        file = str(Path(code.co_filename).relative_to(ROOT))
        if not _entered or _entered[-1][1] != file:
            _entered.append((time.monotonic(), file))


def start() -> None:
    """Record this thread and all threads that it starts."""
    threading.setprofile(_record)
    sys.setprofile(_record)


def write() -> None:
    sys.setprofile(None)
    (Path(os.environ[FOLDER]) / f"{os.getpid()}.json").write_text(json.dumps(_entered))


def worker_main(*arguments: Any) -> None:
    start()
    worker.main(*arguments)
    write()


if __name__ == "__main__":
    from engine.client.engine_client import EngineClient
    from engine.config.model_config import ModelConfig
    from engine.config.options import EngineOptions
    from server.app import create_app, run
    from server.settings.settings import read_settings
    from server.transport.server import listen
    from tests import recording_server

    settings = read_settings(sys.argv[1:])
    options = EngineOptions(("cpu",), dtype="float32", compile=False)
    engine = EngineClient(ModelConfig.load(Path(settings.model)), options, recording_server.worker_main)
    recording_server.start()
    code = run(create_app(settings, engine), listen(settings))
    recording_server.write()
    sys.exit(code)
