"""Runs client programs against a server. Each prints what it saw as one JSON object."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.server.process import HANG, REPOSITORY, ServerProcess

HERE = Path(__file__).parent
PACKAGES = REPOSITORY / ".cache/clients"  # tests/install-tools.sh
# The clients report usage or fetch data at start unless told otherwise.
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
}


def run_node(program: str, server: ServerProcess, *arguments: str) -> Any:
    return _run(["node", HERE / "node" / program], server, *arguments)


def run_python(program: str, server: ServerProcess) -> Any:
    # Without bytecode, which pip did not write, importing litellm takes twice as long.
    environment = {"PYTHONPATH": str(PACKAGES), "PYTHONDONTWRITEBYTECODE": ""}
    return _run([sys.executable, HERE / "python" / program], server, **environment)


def _run(command: list[str | Path], server: ServerProcess, *arguments: str, **environment: str) -> Any:
    """Output of the program, which gets the base URL first. Raises AssertionError if it fails."""
    program = subprocess.run(
        [*command, f"{server.url}/v1", *arguments],
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout)
