"""The OpenAPI document: schemathesis, and the limits of the model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.server.process import HANG, ServerProcess

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)

EXCLUDED = tuple(f"--exclude-path={path}" for path in ("/drain", "/v1/images/edits", "/v1/images/variations"))


def run_schemathesis(
    server: ServerProcess, folder: Path, *options: str
) -> "subprocess.CompletedProcess[str]":
    """The examples, coverage and fuzzing phases."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.url}/openapi.json",
        "--phases=examples,coverage,fuzzing",
        f"--checks={','.join(CHECKS)}",
        "--seed=1",
        "--continue-on-failure",
        "--suppress-health-check=all",
        f"--request-timeout={HANG}",
        *options,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)


def test_schemathesis(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Without /drain, which would end the test, and the edits, whose bodies are image files."""
    # The phases send the same few Idempotency-Keys with every body.
    server = start("--idempotency-seconds", "0.001")
    run = run_schemathesis(server, tmp_path, "--max-examples=25", *EXCLUDED)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    assert server.metric('ideoserve_requests_total{outcome="ok"}') > 20
    assert not server.log_lines(level="error")


def test_limits_are_the_models(server: ServerProcess) -> None:
    schema = server.http.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]["properties"]

    def bounds(name: str) -> dict[str, object]:
        return {rule: value for rule, value in schema[name]["anyOf"][0].items() if rule != "type"}

    for side in ("width", "height"):
        # `size_policy` may round any size, so what the model allows is in the description.
        assert bounds(side) == {"minimum": 1, "maximum": 10**9}
        assert "a multiple of 16 from 64 to 256" in schema[side]["description"]
    assert bounds("n") == {"minimum": 1, "maximum": 10}
    assert bounds("preset") == {"enum": ["V4_QUALITY_48", "V4_DEFAULT_20", "V4_TURBO_12"]}


def test_the_document_is_browsable(server: ServerProcess) -> None:
    assert "swagger" in server.http.get("/docs").text.lower()
    responses = server.http.get("/openapi.json").json()["paths"]["/v1/images"]["post"]["responses"]
    assert " ".join(responses) == "200 400 401 403 404 406 408 413 415 422 429 431 499 500 502 503 504"
