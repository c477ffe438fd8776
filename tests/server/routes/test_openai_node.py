"""The official `openai` npm client, unchanged."""

import json
import subprocess
from pathlib import Path

from tests.server.process import HANG, ServerProcess

CLIENT = Path(__file__).parents[1] / "node" / "client.js"


def test_npm_client(server: ServerProcess) -> None:
    run = subprocess.run(["node", CLIENT, server.url], capture_output=True, text=True, timeout=HANG)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert "The model failed" in seen.pop("streamError")
    assert seen == {
        "seeds": [5, 6],
        "isPng": True,
        "totalTokens": 2 + 2 * 64,
        "events": ["image_generation.partial_image"] * 2 + ["image_generation.completed"],
        "error": {"name": "BadRequestError", "status": 400, "code": "invalid_value", "param": "size"},
        "models": ["fake-model"],
    }
