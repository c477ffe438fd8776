"""Workers with another checkpoint or clock than the front: real processes, with the fake engine."""

import io
import re
import time

from PIL import Image

from server.generation import metadata
from tests.server.process import ServerProcess, small, until
from tests.server.queue.fleet import Fleet, ready

OLD, NEW = "0" * 12, "1" * 12


def model_hash(front: ServerProcess) -> str:
    """Of an image."""
    response = front.create({"Accept": "image/png"})
    assert response.status_code == 200, response.text
    facts = metadata.read(Image.open(io.BytesIO(response.content)))
    assert facts
    return str(facts["model_hash"])


def checkpoint(server: ServerProcess) -> str:
    """That the server says it serves."""
    return str(server.http.get("/v1/models").json()["data"][0]["fingerprint"])


def test_requests_run_on_workers_of_their_checkpoint(fleet: Fleet) -> None:
    new = fleet.process("worker", FAKE_CHECKPOINT=NEW)
    front, bare = (fleet.process("front", FAKE_CHECKPOINT=name) for name in (OLD, ""))
    ready(new, bare)
    assert front.http.get("/readyz").json()["error"]["code"] == "model_not_ready"
    old = fleet.process("worker", FAKE_CHECKPOINT=OLD)
    ready(old, front)
    assert [front.metric(f'ideoserve_devices{{state="{state}"}}') for state in ("ready", "silent")] == [1, 0]
    assert {model_hash(front) for _ in range(4)} == {checkpoint(front)} == {OLD}
    assert model_hash(bare) == checkpoint(bare) == NEW
    assert (old.state()["finished"], new.state()["finished"]) == (4, 1)
    assert "is not used: this server has 000000000000" in front.log
    new.terminate()
    until(lambda: checkpoint(bare) == OLD)
    assert model_hash(bare) == OLD


def test_clocks_of_hosts_do_not_matter(fleet: Fleet) -> None:
    worker = fleet.process("worker", FAKE_CLOCK_SECONDS="3600")
    front = fleet.process("front", FAKE_CLOCK_SECONDS="-3600")
    ready(worker, front)
    done = front.create({"X-Request-Timeout": "100"})
    assert done.status_code == 200
    (queue,) = re.findall(r"queue;dur=([\d.]+)", done.headers["server-timing"])
    assert float(queue) < 100_000
    image = front.create(response_format="url").json()["data"][0]["url"]
    assert front.http.get(image.removeprefix(front.url)).status_code == 200
    job = front.http.post("/v1/jobs", json=small(), headers={"X-Request-Timeout": "100"}).json()
    assert abs(job["created_at"] - time.time()) < 60
    until(lambda: front.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "completed")
    late = front.create({"X-Request-Timeout": "0.5"}, prompt="hold: x", num_inference_steps=1)
    assert late.json()["error"]["code"] == "deadline_exceeded"
    worker.wait(running=0)
