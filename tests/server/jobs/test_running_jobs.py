"""Jobs while servers, devices and the broker come and go."""

import asyncio
import base64
import signal
from collections.abc import Callable
from pathlib import Path

import nats
import pytest

from server.jobs.job import JobRecord
from server.jobs.job_store import ChangedError, JobStore
from server.jobs.runner import AT_ONCE
from server.queue.connection.access import Access
from server.queue.connection.broker import Broker
from tests.server import sse
from tests.server.jobs.job_client import JobClient, Json
from tests.server.jobs.job_server import MAX_ATTEMPTS
from tests.server.jobs.test_stored_jobs import NOW, spec
from tests.server.process import until
from tests.server.queue.nats_server import NatsServer

IMAGE = "image_generation.completed"
Join = Callable[..., JobClient]
RECORD = JobRecord.of(spec({"prompt": "a cat"}))


def hold(jobs: JobClient, count: int = 1, **body: str) -> list[str]:
    """Jobs that wait at their first step."""
    held = [jobs.create(prompt="hold: it", seed=k, **body)["id"] for k in range(count)]
    jobs.server.wait(running=count)
    return held


def test_queued_jobs_have_a_place_and_can_be_cancelled(jobs: JobClient) -> None:
    finished = jobs.server.state()["finished"]
    held = hold(jobs, AT_ONCE)
    first, second, batch = jobs.create(), jobs.create(), jobs.create({"X-Priority": "batch"})
    assert [jobs.get(job)["position"] for job in (first, second)] == [1, 2]
    # Each has 20 steps of 0.1 s; the jobs that run and one queued job are ahead of the second.
    assert jobs.get(second)["predicted_seconds"] == 2.0 * (AT_ONCE + 2)
    assert jobs.ended(batch)["status"] == "completed"  # its priority has its own places

    cancelled = jobs.delete(first).json()
    assert (cancelled["status"], cancelled["position"], cancelled["error"]) == ("cancelled", None, None)
    assert jobs.get(second)["position"] == 1
    assert [event.name for event in jobs.events(first)] == ["job.cancelled"]
    jobs.server.release()
    assert {jobs.ended(job)["status"] for job in (*held, second)} == {"completed"}
    assert jobs.server.state()["finished"] == finished + AT_ONCE + 2


def test_cancelling_a_running_job_aborts_it(jobs: JobClient) -> None:
    aborted = jobs.server.state()["aborted"]
    (job,) = hold(jobs)
    assert jobs.delete(job).json()["status"] == "cancelled"
    jobs.server.wait(aborted=aborted + 1, running=0)
    assert jobs.get(job)["status"] == "cancelled"
    assert jobs.delete(job).json()["deleted"]


def test_a_job_that_is_not_admitted_yet_waits(join: Join) -> None:
    jobs = join("--max-backlog-seconds", "3")
    held = hold(jobs)
    waiting = jobs.create()
    refused = jobs.server.create()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert jobs.get(waiting)["status"] == "queued"
    jobs.server.release()
    assert {jobs.ended(job)["status"] for job in (*held, waiting)} == {"completed"}


def test_jobs_are_accepted_while_no_device_is_ready(jobs: JobClient) -> None:
    jobs.server.set(is_ready=False)
    job = jobs.create()
    assert (job["status"], job["predicted_seconds"]) == ("queued", None)
    jobs.server.set(is_ready=True)
    assert jobs.ended(job)["status"] == "completed"


def finished(jobs: JobClient, job: str) -> Json:
    """The job, once it has ended; releases whatever is held."""
    until(lambda: jobs.server.release() or jobs.get(job)["finished_at"] is not None)
    return jobs.ended(job)


def test_another_server_runs_the_job_of_one_that_died(join: Join) -> None:
    dying, other = join(), join()
    other.server.set(is_ready=False)
    job = dying.create(prompt="hold: it", n=2, seed=9)["id"]
    until(lambda: other.get(job)["progress"] > 0)
    dying.server.release()
    until(lambda: other.get(job)["progress"] > 0.5)  # one of the images is stored
    with other.server.http.stream("GET", f"/v1/jobs/{job}/events") as response:
        events = sse.read(response.iter_lines())
        assert next(event for event in events if event.name == IMAGE).data["image_index"] == 0
        dying.server.process.kill()
        other.server.set(is_ready=True)
        done = finished(other, job)
        names = [event.name for event in events]
    assert (names.count(IMAGE), names.count("job.completed")) == (1, 1)  # image 0 is not sent again
    assert (done["status"], [image["seed"] for image in done["images"]]) == ("completed", [9, 10])
    expected = other.server.create(prompt="a cat", n=2, seed=9).json()["data"]
    assert [other.image(job, k) for k in range(2)] == [
        base64.b64decode(each["b64_json"]) for each in expected
    ]


def test_a_server_that_was_away_does_not_finish_a_job_again(join: Join) -> None:
    stopped, other = join(), join()
    other.server.set(is_ready=False)
    job = stopped.create(prompt="hold: it")["id"]
    stopped.server.wait(running=1)
    stopped.server.process.send_signal(signal.SIGSTOP)
    other.server.set(is_ready=True)
    done = finished(other, job)
    stopped.server.process.send_signal(signal.SIGCONT)
    stopped.server.wait(running=0, aborted=1)
    assert stopped.get(job) == other.get(job) == done
    assert [event.name for event in stopped.events(job)].count("job.completed") == 1


def test_a_job_that_kills_its_servers_fails(join: Join) -> None:
    last = join()
    last.server.set(is_ready=False)
    for _ in range(MAX_ATTEMPTS):
        dying = join()
        job = dying.create({"Idempotency-Key": "k"}, prompt="hold: it")["id"]
        dying.server.wait(running=1)
        dying.server.process.kill()
    last.server.set(is_ready=True)
    done = last.ended(job)
    assert (done["status"], done["error"]["code"]) == ("failed", "worker_crashed")
    assert last.server.state()["requests"] == []


def test_a_restart_of_the_broker_loses_nothing(join: Join, own_broker: NatsServer) -> None:
    jobs = join()
    (running,) = hold(jobs)
    jobs.server.set(is_ready=False)
    queued = jobs.create(seed=4)["id"]
    own_broker.kill()
    for response in (jobs.post(), jobs.server.http.get("/v1/jobs"), jobs.delete(queued)):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
        assert int(response.headers["retry-after"]) >= 1
    jobs.server.release()  # the image is done while the broker is away
    jobs.server.wait(running=0)
    own_broker.start()
    until(lambda: jobs.server.http.get(f"/v1/jobs/{queued}").status_code == 200)
    jobs.server.set(is_ready=True)
    assert {finished(jobs, job)["status"] for job in (running, queued)} == {"completed"}
    assert jobs.server.state()["finished"] == 2
    assert [job["id"] for job in jobs.page()["data"]] == [queued, running]


def test_a_drain_finishes_jobs_that_run_and_leaves_others(join: Join) -> None:
    leaving, other = join(), join()
    other.server.set(is_ready=False)
    held = hold(leaving, AT_ONCE)
    waiting = other.create()["id"]
    leaving.server.terminate()
    until(lambda: leaving.server.http.get("/readyz").status_code == 503)
    assert leaving.post().json()["error"]["code"] == "server_draining"
    leaving.server.release()
    assert leaving.server.exit_code() == 0
    assert {other.get(job)["status"] for job in held} == {"completed"}
    assert other.get(waiting)["status"] == "queued"
    other.server.set(is_ready=True)
    assert other.ended(waiting)["status"] == "completed"


def test_a_server_that_is_stopped_gives_its_jobs_back(join: Join) -> None:
    leaving, other = join(), join()
    other.server.set(is_ready=False)
    (job,) = hold(leaving)
    leaving.server.terminate()
    until(lambda: leaving.server.http.get("/readyz").status_code == 503)
    leaving.server.terminate()
    assert leaving.server.exit_code() == 0
    other.server.set(is_ready=True)
    assert finished(other, job)["status"] == "completed"


def test_a_job_fails_at_its_deadline(jobs: JobClient) -> None:
    before = len(jobs.server.state()["requests"])
    hopeless = jobs.post({"X-Request-Timeout": "1.9"}).json()["error"]
    assert hopeless["code"] == "deadline_unreachable"
    jobs.server.set(seconds_per_step=0)
    job = jobs.ended(jobs.create({"X-Request-Timeout": "0.5"}, prompt="hold: it"))
    assert (job["status"], job["error"]["code"]) == ("failed", "deadline_exceeded")
    jobs.server.set(is_ready=False)
    late = jobs.create({"X-Request-Timeout": "0.1"})
    assert jobs.ended(late)["error"]["code"] == "deadline_exceeded"  # no server could run it
    assert len(jobs.server.state()["requests"]) == before + 1
    jobs.server.set(is_ready=True, seconds_per_step=0.1)


def test_the_images_of_jobs_are_in_the_store(join: Join, tmp_path: Path, own_broker: NatsServer) -> None:
    jobs = join("--store", f"file://{tmp_path}")
    job = jobs.ended(jobs.create(n=2))
    files = sorted(tmp_path.iterdir())
    assert [file.name.rpartition("-")[0] for file in files] == [f"{job['id']}-{k}" for k in range(2)]
    assert [jobs.image(job, k) for k in range(2)] == [file.read_bytes() for file in files]
    assert stored_messages(own_broker).get("FILES", 0) == 0
    jobs.delete(job)
    assert list(tmp_path.iterdir()) == []


def test_jobs_expire(join: Join, own_broker: NatsServer) -> None:
    jobs = join("--job-ttl-seconds", "2")
    jobs.server.set(seconds_per_step=0)
    job = jobs.ended(jobs.create())
    jobs.server.set(is_ready=False)
    jobs.create()
    assert jobs.server.metric('ideoserve_jobs_unfinished{status="queued"}') == 1
    until(lambda: jobs.server.http.get(f"/v1/jobs/{job['id']}").status_code == 404)
    assert job["id"] not in {each["id"] for each in jobs.page()["data"]}
    until(lambda: jobs.server.metric('ideoserve_jobs_unfinished{status="queued"}') == 0)
    until(lambda: stored_messages(own_broker) == {"JOBS": 0, "EVENTS": 0, "FILES": 0, "KV_jobs": 0})


def test_the_number_of_jobs_is_limited(join: Join) -> None:
    jobs = join("--max-queued-jobs", "2")
    jobs.server.set(is_ready=False)
    first, _ = jobs.create(), jobs.create()
    refused = jobs.post()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "queue_full")
    assert "2 jobs" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    jobs.delete(first)
    assert jobs.post().status_code == 202
    assert jobs.post().status_code == 429


def test_only_one_change_of_a_revision_is_stored(broker: NatsServer) -> None:
    async def scenario() -> None:
        connection = Broker(Access((broker.url,)))
        await connection.connect()
        store = JobStore(connection, 60, 10)
        await store.start()
        first = await store.create(RECORD)
        assert (await store.create(RECORD.cancelled(NOW))) == first
        running = await store.update(first, RECORD.started(NOW))
        for change in (store.update(first, RECORD.cancelled(NOW)), store.delete(first)):
            with pytest.raises(ChangedError):
                await change
        assert await store.find(RECORD.id) == running
        await store.delete(running)
        assert await store.find(RECORD.id) is None
        await connection.close()

    asyncio.run(scenario())


def stored_messages(broker: NatsServer) -> dict[str, int]:
    """By stream, of those of jobs."""

    async def count() -> dict[str, int]:
        client = await nats.connect(broker.url)
        streams = await client.jetstream().streams_info()
        await client.close()
        return {
            stream.config.name: stream.state.messages
            for stream in streams
            if stream.config.name in ("JOBS", "EVENTS", "FILES", "KV_jobs")
        }

    return asyncio.run(count())
