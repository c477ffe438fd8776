"""The event stream of a job, read while it runs and afterwards."""

import json

import httpx
import pytest

from tests.server import sse
from tests.server.jobs.job_client import JobClient

IMAGE = "image_generation.completed"
PREVIEW = "image_generation.partial_image"
PROGRESS = "image_generation.progress"


def ids(response: httpx.Response) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in response.text.splitlines() if line.startswith("id: ")]


def test_events_are_those_of_an_image_request(jobs: JobClient) -> None:
    body = {"prompt": "a cat", "seed": 3, "n": 2, "partial_images": 1}
    job = jobs.create(**body)
    events = jobs.events(job)
    stream = jobs.server.create(**body, stream=True)
    for kind in (PREVIEW, IMAGE):
        expected = [event.data for event in sse.named(stream.text.splitlines()) if event.name == kind]
        stored = [event.data for event in events if event.name == kind]
        for data in (*expected, *stored):
            del data["created_at"]
        assert stored == expected
    assert events[-1].name == "job.completed"
    assert events[-1].data["job"]["id"] == job["id"]
    assert events[-1].data["job"]["status"] == "completed"


def test_a_stream_joined_late_ends_at_once_and_can_be_continued(jobs: JobClient) -> None:
    job = jobs.ended(jobs.create(prompt="a dog", n=3))
    path = f"/v1/jobs/{job['id']}/events"
    response = jobs.server.http.get(path)
    assert response.headers["content-type"].startswith("text/event-stream")
    events, numbers = sse.named(response.text.splitlines()), ids(response)
    assert [event.name for event in events if event.name != PROGRESS] == [IMAGE] * 3 + ["job.completed"]
    assert numbers == sorted(numbers)
    third = jobs.server.http.get(path, headers={"Last-Event-ID": str(numbers[-3])})
    assert ids(third) == numbers[-2:]
    assert sse.named(third.text.splitlines()) == events[-2:]
    assert jobs.server.http.get(path, headers={"Last-Event-ID": str(numbers[-1])}).status_code == 204


def test_events_arrive_while_the_job_runs(jobs: JobClient) -> None:
    job = jobs.create(prompt="hold: it", n=2)
    with jobs.server.http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        events = sse.read(response.iter_lines())
        assert next(event for event in events if event.name).name == PROGRESS
        running = jobs.get(job)
        assert (running["status"], running["position"]) == ("running", None)
        assert 0 < running["progress"] < 0.5
        # One step of 0.1 s of the first of two images of 20 steps is done.
        assert running["predicted_seconds"] == pytest.approx(3.9)
        jobs.server.release()
        assert next(event for event in events if event.name == IMAGE).data["image_index"] == 0
        jobs.server.wait(running=1)
        jobs.server.release()
        assert [event.name for event in events if event.name][-1] == "job.completed"


def test_a_failed_job_ends_with_the_error(jobs: JobClient) -> None:
    error, last = jobs.events(jobs.create(prompt="fail: it"))[-2:]
    assert (error.name, last.name) == ("error", "job.failed")
    assert error.data["error"]["code"] == last.data["job"]["error"]["code"] == "generation_failed"


def test_a_stream_pings_and_ends_when_its_job_is_deleted(jobs: JobClient) -> None:
    job = jobs.create(prompt="hold: it")
    timeout = {"x-stainless-read-timeout": "0.5"}
    with jobs.server.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=timeout) as response:
        events = sse.read(response.iter_lines())
        assert next(event for event in events if event.data == "ping")
        assert jobs.delete(job).json()["status"] == "cancelled"
        assert [event.name for event in events if event.name][-1] == "job.cancelled"
    jobs.server.wait(running=0)


@pytest.mark.parametrize("event_id", ["x", "-1", "1.5", "", "9" * 30])
def test_an_invalid_last_event_id_is_refused(jobs: JobClient, event_id: str) -> None:
    job = jobs.create()
    response = jobs.server.http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": event_id})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Last-Event-ID")


def test_stored_events_are_ascii(jobs: JobClient) -> None:
    caption = {
        "high_level_description": "caf\u00e9 \u2028",
        "compositional_deconstruction": {"background": "x"},
    }
    job = jobs.create(json_prompt=caption)
    text = jobs.server.http.get(f"/v1/jobs/{job['id']}/events").text
    assert text.isascii()
    assert json.loads(text.splitlines()[-2].removeprefix("data: "))["job"]["warnings"]
