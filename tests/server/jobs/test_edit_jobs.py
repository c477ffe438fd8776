"""Edits as jobs: the queue keeps their images until they are done."""

import asyncio
import io
from typing import Any

import nats
import pytest
from PIL import Image

from tests.server.edits.client import edit, refused
from tests.server.edits.pictures import encoded, hole, noise
from tests.server.jobs.job_client import JobClient
from tests.server.process import until
from tests.server.queue.nats_server import NatsServer

ASYNC = {"Prefer": "respond-async"}
PNG = encoded(hole(64, 64, (0, 0, 16, 16)))


def uploads(broker: NatsServer) -> int:
    """Images that the broker keeps."""
    return asyncio.run(_uploads(broker))


async def _uploads(broker: NatsServer) -> int:
    client = await nats.connect(broker.url)
    state = (await client.jetstream().stream_info("JOB_UPLOADS", subjects_filter=">")).state
    await client.close()
    return sum(subject.startswith("job-uploads.") for subject in state.subjects or {})


def created(jobs: JobClient, **options: Any) -> dict[str, Any]:
    response = edit(jobs.server, headers=ASYNC | options.pop("headers", {}), **options)
    assert response.status_code == 202, response.text
    assert response.headers["preference-applied"] == "respond-async"
    return response.json()


def test_an_edit_as_a_job(jobs: JobClient, broker: NatsServer) -> None:
    image = noise(64, 64)
    job = jobs.ended(created(jobs, image=encoded(image), mask=PNG, **{"metadata[order]": "12"}))
    assert (job["status"], job["metadata"]) == ("completed", {"order": "12"})
    assert job["usage"]["input_tokens_details"]["image_tokens"] == 16
    found = Image.open(io.BytesIO(jobs.image(job, 0)))
    assert found.getpixel((0, 0)) == (5, 64, 128)
    assert found.crop((16, 0, 64, 64)).tobytes() == image.crop((16, 0, 64, 64)).tobytes()
    assert [event.name for event in jobs.events(job)][-2:] == ["image_edit.completed", "job.completed"]
    assert uploads(broker) == 0


def test_the_image_is_kept_until_the_job_ends(jobs: JobClient, broker: NatsServer) -> None:
    job = created(jobs, prompt="hold: a cat", headers={"Idempotency-Key": "kept"})
    jobs.server.wait(running=1)
    assert uploads(broker) == 1
    assert created(jobs, prompt="hold: a cat", headers={"Idempotency-Key": "kept"})["id"] == job["id"]
    other = edit(jobs.server, prompt="a dog", headers={**ASYNC, "Idempotency-Key": "kept"})
    refused(other, "Idempotency-Key", "idempotency_key_reused", 422)
    assert uploads(broker) == 1
    assert jobs.delete(job).json()["status"] == "cancelled"
    until(lambda: uploads(broker) == 0)


@pytest.mark.parametrize(("field", "value"), [("stream", "true"), ("webhook", "https://example.com")])
def test_refused(jobs: JobClient, broker: NatsServer, field: str, value: str) -> None:
    refused(edit(jobs.server, headers=ASYNC, **{field: value}), field, "invalid_value")
    assert uploads(broker) == 0
