"""Jobs over HTTP: submission, retrieval, lists, deletion, and whose they are."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.jobs.conftest import MODULE
from tests.server.jobs.job_client import JobClient
from tests.server.process import ServerProcess, small
from tests.server.queue.nats_server import NatsServer


def test_a_job_returns_the_images_of_its_request(jobs: JobClient) -> None:
    body = small(prompt="a lighthouse", n=2, seed=7, output_format="webp", metadata={"order": "12"})
    response = jobs.server.http.post("/v1/jobs", json=body)
    job = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert job["object"] == "job"
    assert job["status"] in ("queued", "running")

    done = jobs.ended(job)
    assert (done["status"], done["progress"], done["position"]) == ("completed", 1.0, None)
    assert done["metadata"] == {"order": "12"}
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] <= done["expires_at"] - 86_399
    assert [(image["index"], image["seed"]) for image in done["images"]] == [(0, 7), (1, 8)]

    images = jobs.server.create(prompt="a lighthouse", n=2, seed=7, output_format="webp").json()
    assert done["usage"] == images["usage"]
    for image, expected in zip(done["images"], images["data"], strict=True):
        file = jobs.server.http.get(image["url"])
        assert file.content == base64.b64decode(expected["b64_json"])
        assert (file.headers["content-type"], file.headers["x-seed"]) == ("image/webp", str(image["seed"]))


def test_a_large_image_is_stored_in_parts(jobs: JobClient) -> None:
    """The messages of the broker have at most 1 MiB."""
    job = jobs.ended(jobs.create(prompt="noise: 1", size="256x256", seed=3))
    image = jobs.server.create(prompt="noise: 1", size="256x256", seed=3).json()["data"][0]
    assert jobs.image(job, 0) == base64.b64decode(image["b64_json"])


def test_an_image_request_that_prefers_so_becomes_a_job(jobs: JobClient) -> None:
    for preference in ("respond-async", "wait=10, Respond-Async", "respond-async; a=b"):
        response = jobs.server.create({"Prefer": preference}, metadata={"a": "b"})
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "respond-async"
        assert response.json()["metadata"] == {"a": "b"}
    assert jobs.server.create({"Prefer": "respond-sync"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"size": "65x64"}, "size", "multiples of 16"),
        ({"steps": 0}, "steps", "greater than or equal to 1"),
        ({"stream": True}, "stream", "/v1/jobs/{id}/events"),
        ({"webhok": "x"}, "webhok", "Did you mean `webhook`?"),
        ({"webhook": "https://example.com"}, "webhook", "no webhooks"),
        ({"metadata": {str(k): "" for k in range(17)}}, "metadata", "at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "at most 64 characters"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512 characters"),
        ({"metadata": {"k": 1}}, "metadata.k", "valid string"),
        ({"prompt": "word " * 2049}, "prompt", "2049 tokens; the limit is 2048"),
    ],
)
def test_an_invalid_request_is_refused(jobs: JobClient, body: dict[str, Any], param: str, said: str) -> None:
    response = jobs.post(**body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert said in error["message"]


def test_an_invalid_timeout_is_refused(jobs: JobClient) -> None:
    error = jobs.post({"X-Request-Timeout": "soon"}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "X-Request-Timeout")


def test_a_job_fails_with_the_error_of_its_request(jobs: JobClient) -> None:
    job = jobs.ended(jobs.create(prompt="fail: now"))
    assert (job["status"], job["images"]) == ("failed", [])
    assert job["error"] == jobs.server.create(prompt="fail: now").json()["error"]


def test_a_finished_job_is_deleted_with_its_images(jobs: JobClient) -> None:
    job = jobs.ended(jobs.create())
    assert jobs.delete(job).json() == {"id": job["id"], "object": "job", "deleted": True}
    for path in (f"/v1/jobs/{job['id']}", job["images"][0]["url"], f"/v1/jobs/{job['id']}/events"):
        assert jobs.server.http.get(path).json()["error"]["code"] == "not_found"
    assert jobs.delete(job).status_code == 404
    assert job["id"] not in [each["id"] for each in jobs.page(limit=100)["data"]]


def test_an_image_that_does_not_exist_is_not_found(jobs: JobClient) -> None:
    job = jobs.ended(jobs.create())
    for index in ("1", "-1", "00", "x"):
        response = jobs.server.http.get(f"/v1/jobs/{job['id']}/images/{index}")
        assert response.json()["error"]["message"] == "This job has no such image."


@pytest.mark.parametrize("job_id", ["job-" + "0" * 32, "job-1", "a.b", ">", "*", "job-" + "0" * 31 + "."])
def test_an_unknown_job_is_not_found(jobs: JobClient, job_id: str) -> None:
    for method in ("GET", "DELETE"):
        response = jobs.server.http.request(method, f"/v1/jobs/{job_id}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_lists_have_pages_and_filters(join: Callable[..., JobClient]) -> None:
    jobs = join()
    made = [jobs.create(seed=k)["id"] for k in range(5)]
    failed = jobs.create(prompt="fail: this")["id"]
    for job_id in (*made, failed):
        jobs.ended(job_id)
    newest_first = [failed, *reversed(made)]

    page, seen = jobs.page(limit=4), []
    assert (page["object"], page["has_more"]) == ("list", True)
    seen += [job["id"] for job in page["data"]]
    jobs.delete(seen[-1])  # the cursor outlives its job
    page = jobs.page(limit=4, after=page["next"])
    assert (page["has_more"], page["next"]) == (False, None)
    assert seen + [job["id"] for job in page["data"]] == newest_first

    assert [job["id"] for job in jobs.page(status="failed")["data"]] == [failed]
    assert jobs.page(status="queued")["data"] == []
    assert jobs.page(created_before=1)["data"] == []
    assert len(jobs.page(created_after=1)["data"]) == 5


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=done", "status"),
        ("after=job-1", "after"),
        ("created_after=nan", "created_after"),
        ("page=2", "page"),
    ],
)
def test_an_invalid_query_is_refused(jobs: JobClient, query: str, param: str) -> None:
    response = jobs.server.http.get(f"/v1/jobs?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_requests_with_one_idempotency_key_share_a_job(jobs: JobClient) -> None:
    key = {"Idempotency-Key": "one"}
    first, again = jobs.create(key, prompt="once"), jobs.create(key, prompt="once")
    assert first["id"] == again["id"]
    error = jobs.post(key, prompt="twice").json()["error"]
    assert error["code"] == "idempotency_key_reused"
    jobs.ended(first)
    assert jobs.create(key, prompt="once")["status"] == "completed"

    jobs.delete(first)
    assert jobs.ended(jobs.create(key, prompt="twice"))["status"] == "completed"


def test_only_the_key_of_a_job_sees_it(
    start: Callable[..., ServerProcess], own_broker: NatsServer, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    names = {"web": ["interactive"], "night": ["batch"]}
    keys.write_text(
        json.dumps(
            {
                "keys": [
                    {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "priorities": allowed}
                    for name, allowed in names.items()
                ]
            }
        )
    )
    server = start("--queue", own_broker.url, "--api-keys-file", str(keys), module=MODULE)
    jobs = JobClient(server)
    assert jobs.post().status_code == 401
    server.http.headers["Authorization"] = "Bearer web"
    assert jobs.post({"X-Priority": "batch"}).json()["error"]["code"] == "priority_not_allowed"
    job = jobs.ended(jobs.create({"Idempotency-Key": "k"}))
    assert job["priority"] == "interactive"

    server.http.headers["Authorization"] = "Bearer night"
    for path in ("", "/events", "/images/0"):
        assert server.http.get(f"/v1/jobs/{job['id']}{path}").status_code == 404
    assert jobs.delete(job).status_code == 404
    assert jobs.page()["data"] == []
    other = jobs.create({"Idempotency-Key": "k"})
    assert (other["id"] != job["id"], other["priority"]) == (True, "batch")
    assert jobs.ended(other)["status"] == "completed"


def test_without_a_queue_there_are_no_jobs(server: ServerProcess) -> None:
    for method, path in (("POST", ""), ("GET", ""), ("GET", "/job-1"), ("DELETE", "/job-1")):
        response = server.http.request(method, f"/v1/jobs{path}", json=small())
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "jobs_not_enabled")
        assert "--queue" in error["message"]
    assert server.create({"Prefer": "respond-async"}).status_code == 200
