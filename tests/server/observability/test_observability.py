"""Logs, metrics, spans, and the metadata of image files."""

import asyncio
import io
import json
import queue
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image

from server import VERSION
from server.app import create_app
from server.settings.settings import Settings
from tests.server.connections import connection
from tests.server.fake_engine import FakeEngine
from tests.server.forked_program import run_module
from tests.server.process import HANG, ServerProcess, small, until

Start = Callable[..., ServerProcess]
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def test_one_log_line_per_request(server: ServerProcess) -> None:
    headers = {"X-Request-Id": "r-1", "traceparent": TRACEPARENT, "X-Priority": "batch"}
    server.create(headers, prompt="a zebra", n=2, seed=4, preset="V4_TURBO_12")
    (line,) = server.logged(request_id="r-1")
    assert line.pop("seconds") > 0
    assert line.pop("generation_id").startswith("img-")
    assert line.pop("time").endswith("Z")
    assert set(line.pop("stage_seconds")) == {"queue", "encode", "denoise", "decode", "image"}
    assert line == {
        "level": "info",
        "logger": "ideoserve.request",
        "message": "request",
        "request_id": "r-1",
        "trace_id": TRACE,
        "method": "POST",
        "path": "/v1/images",
        "status": 200,
        "outcome": "ok",
        "key": "anonymous",
        "priority": "batch",
        "mode": "json",
        "size": "64x64",
        "preset": "V4_TURBO_12",
        "steps": 12,
        "n": 2,
        "seed": 4,
    }


def test_an_error_has_its_line(server: ServerProcess) -> None:
    server.create({"X-Request-Id": "r-2", "traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}, n=99)
    (line,) = server.logged(request_id="r-2")
    assert (line["status"], line["outcome"]) == (400, "invalid_value")
    assert "trace_id" not in line
    server.create({"X-Request-Id": "r-3"}, prompt="fail: a", stream=True)
    (line,) = server.logged(request_id="r-3")
    assert (line["status"], line["outcome"]) == (200, "generation_failed")


def test_every_line_of_the_log_is_json(server: ServerProcess) -> None:
    server.create(prompt="bug: a")
    for line in server.log.splitlines():
        json.loads(line)
    (bug,) = server.logged(level="error", exception="KeyError")
    assert bug["at"]


def test_prompts_are_logged_only_if_set(start: Start, server: ServerProcess) -> None:
    server.create(prompt="a walrus")
    assert "walrus" not in server.log
    loud = start("--log-prompts")
    loud.create(prompt="a walrus")
    assert loud.logged(prompt="a walrus")


def test_promtool_accepts_the_metrics(server: ServerProcess) -> None:
    server.create()
    text = server.http.get("/metrics").content
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=HANG)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def test_metrics_count(start: Start) -> None:
    server = start("--max-backlog-seconds", "1")
    server.create(n=2, num_inference_steps=5)
    server.create(prompt="fail: a")
    server.create(n=0)
    server.create({"X-Request-Timeout": "0.01"})
    expected = {
        'requests_total{outcome="ok"}': 1,
        'requests_total{outcome="generation_failed"}': 1,
        'requests_total{outcome="invalid_value"}': 1,
        'requests_total{outcome="deadline_unreachable"}': 1,
        'rejected_total{reason="deadline_unreachable"}': 1,
        'rejected_total{reason="queue_full"}': 0,
        "images_total": 2,
        "aborts_total": 0,
        "request_duration_seconds_count": 4,
        "queue_seconds_count": 1,
        "image_encoding_seconds_count": 1,
        "encode_seconds_count": 2,
        "step_seconds_count": 11,
        "decode_seconds_count": 2,
        "batch_size_count": 11,
        "requests_running": 0,
        "requests_waiting": 0,
        "backlog_seconds": 0,
        "worker_restarts_total": 0,
        "device_memory_bytes": 1 << 30,
        "ready": 1,
        'devices{state="ready"}': 1,
        'devices{state="failed"}': 0,
        f'build_info{{model="fake-model",model_hash="0123456789ab",version="{VERSION}"}}': 1,
    }
    assert {name: server.metric(f"ideoserve_{name}") for name in expected} == expected


def outcomes(server: ServerProcess) -> Counter[str]:
    """Requests by outcome."""
    name = 'ideoserve_requests_total{outcome="'
    lines = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith(name)]
    samples = (line.removeprefix(name).split('"} ') for line in lines)
    return Counter({outcome: int(float(value)) for outcome, value in samples})


def test_every_request_has_one_outcome(start: Start) -> None:
    server = start("--max-backlog-seconds", "86400", "--max-body-bytes", "2048")
    kinds: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("ok", {}, {}),
        ("ok", {"Idempotency-Key": "k"}, {"prompt": "slow: a", "num_inference_steps": 2}),
        ("ok", {"Accept": "text/event-stream"}, {"n": 2}),
        ("generation_failed", {"Accept": "text/event-stream"}, {"prompt": "fail: a"}),
        ("internal_error", {"Accept": "image/png"}, {"prompt": "bug: a"}),
        ("deadline_exceeded", {"Idempotency-Key": "d"}, {"prompt": "deadline: a"}),
        ("deadline_unreachable", {"X-Request-Timeout": "0.001"}, {}),
        ("invalid_value", {"X-Priority": "nonsense"}, {}),
        ("body_too_large", {}, {"user": "x" * 2048}),
        ("idempotency_key_reused", {"Idempotency-Key": "k"}, {"seed": 1}),
    ]
    server.create(kinds[1][1], **kinds[1][2])
    with ThreadPoolExecutor(16) as pool:
        for _, headers, body in kinds * 20:
            pool.submit(server.create, headers, **body)
    expected = Counter({"ok": 1}) + Counter(outcome for outcome, _, _ in kinds * 20)
    until(lambda: outcomes(server).total() == expected.total())
    assert outcomes(server) == expected
    assert server.metric("ideoserve_request_duration_seconds_count") == expected.total()


def test_a_cancelled_request_is_neither_ok_nor_rejected() -> None:
    """The request was admitted before."""

    async def cancel() -> tuple[list[Any], str]:
        engine = FakeEngine()
        app = create_app(Settings(model="fake"), engine)
        body = json.dumps(small(prompt="hold: a")).encode()
        arriving, sent = asyncio.Queue[Any](), list[Any]()
        arriving.put_nowait({"type": "http.request", "body": body})
        scope = {**SCOPE, "state": {"connection": connection()}}
        task = asyncio.create_task(app(scope, arriving.get, lambda message: _append(sent, message)))
        await engine.wait_for(lambda: engine.running == 1)
        task.cancel()
        await task
        return sent, app.state.service.metrics.render().decode()

    sent, metrics = asyncio.run(cancel())
    assert [message.get("status") for message in sent] == [503, None]
    assert 'ideoserve_requests_total{outcome="server_draining"} 1.0' in metrics
    assert 'ideoserve_requests_total{outcome="ok"}' not in metrics
    assert 'ideoserve_rejected_total{reason="server_draining"} 0.0' in metrics


SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": "/v1/images",
    "raw_path": b"/v1/images",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


async def _append(messages: list[Any], message: Any) -> None:
    messages.append(message)


def test_gauges_while_a_request_runs(server: ServerProcess) -> None:
    body = {"prompt": "hold: a", "size": "64x64", "stream": True}
    with server.http.stream("POST", "/v1/images", json=body):
        server.wait(running=1)
        assert server.metric("ideoserve_requests_running") == 1
        assert server.metric("ideoserve_backlog_seconds") == pytest.approx(2)
    server.wait(running=0)


@pytest.fixture
def collector() -> Iterator[tuple[str, "queue.Queue[ExportTraceServiceRequest]"]]:
    """An OTLP endpoint."""
    received: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", received
        http.shutdown()


def test_spans_are_exported_under_the_callers_trace(
    start: Start, collector: tuple[str, "queue.Queue[ExportTraceServiceRequest]"]
) -> None:
    endpoint, received = collector
    server = start("--otlp-endpoint", endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="none")
    server.create({"traceparent": TRACEPARENT})
    server.create(prompt="crash: a")
    server.terminate()
    assert server.exit_code() == 0
    spans = [
        span for group in received.get(timeout=HANG).resource_spans[0].scope_spans for span in group.spans
    ]
    by_name = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    assert set(by_name) == {"POST /v1/images", "queue", "encode", "denoise", "decode", "image"}
    whole = by_name["POST /v1/images"]
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert by_name["denoise"].parent_span_id == whole.span_id
    assert by_name["decode"].end_time_unix_nano > by_name["decode"].start_time_unix_nano
    (failed,) = [span for span in spans if span.name == "POST /v1/images" and span.trace_id.hex() != TRACE]
    assert failed.status.message == "worker_crashed"


def inspect(file: Path) -> "subprocess.CompletedProcess[str]":
    return run_module("server.inspect", str(file))


@pytest.mark.parametrize("embeds", [False, True])
def test_parameters_are_in_the_file(start: Start, tmp_path: Path, embeds: bool) -> None:
    server = start("--embed-prompt" if embeds else "--no-embed-prompt")
    body = {"prompt": "a Käfer 🪲", "seed": 12, "preset": "V4_TURBO_12", "mu": 0.25}
    for kind in ("png", "jpeg", "webp"):
        file = tmp_path / kind
        file.write_bytes(server.create({"Accept": f"image/{kind}"}, **body).content)
        run = inspect(file)
        assert run.returncode == 0, run.stderr
        facts: dict[str, Any] = json.loads(run.stdout)
        assert facts.pop("prompt", None) == (body["prompt"] if embeds else None)
        assert facts == {
            "version": VERSION,
            "model": "fake-model",
            "model_hash": "0123456789ab",
            "width": 64,
            "height": 64,
            "preset": "V4_TURBO_12",
            "guidance_schedule": [7.0] * 11 + [3.0],
            "mu": 0.25,
            "std": 1.75,
            "seed": 12,
            "precision": {"weights": "fp8", "widened": True, "matmul": "exact", "dtype": "bfloat16"},
        }


def test_a_prompt_too_long_for_exif_is_left_out(start: Start, tmp_path: Path) -> None:
    server = start("--embed-prompt")
    file = tmp_path / "image"
    file.write_bytes(server.create({"Accept": "image/jpeg"}, prompt="ü" * 20_000, seed=1).content)
    facts = json.loads(inspect(file).stdout)
    assert (facts["prompt"], facts["prompt_omitted"], facts["seed"]) == (None, "too long for EXIF", 1)


def test_inspect_of_other_files(tmp_path: Path) -> None:
    plain, text = tmp_path / "plain.png", tmp_path / "text.png"
    Image.new("RGB", (8, 8)).save(plain)
    text.write_text("no image")
    for file in (plain, text, tmp_path / "missing"):
        run = inspect(file)
        assert run.returncode == 1
        assert run.stderr.startswith(f"{file}: ")
        assert len(run.stderr.splitlines()) == 1


def test_png_compress_level(start: Start, server: ServerProcess) -> None:
    def size(process: ServerProcess) -> int:
        return len(process.create({"Accept": "image/png"}, size="256x256", seed=1).content)

    assert size(start("--png-compress-level", "9")) < size(server)
    assert Image.open(io.BytesIO(server.create({"Accept": "image/png"}).content)).mode == "RGB"
