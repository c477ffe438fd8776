"""Jobs of fronts and workers that share a queue, and their webhooks."""

from collections.abc import Callable
from pathlib import Path

from standardwebhooks import Webhook

from tests.server import fake_upstream
from tests.server.jobs.job_client import JobClient
from tests.server.process import HANG, ServerProcess
from tests.server.queue.fleet import Fleet, ready
from tests.server.queue.nats_server import NatsServer

Start = Callable[..., ServerProcess]
SECRET = "whsec_" + "a2V5IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE="


def test_fronts_run_the_jobs_of_their_model_on_workers(start: Start, own_broker: NatsServer) -> None:
    fleet, others = Fleet(start, own_broker, "one"), Fleet(start, own_broker, "two")
    worker, front, other_front = fleet.worker(), fleet.front(), others.front()
    other_worker = others.worker()
    ready(worker, front, other_front, other_worker)
    jobs = JobClient(front)
    job = jobs.ended(jobs.create(seed=5, n=2))
    assert (job["status"], job["model"]) == ("completed", "one")
    assert JobClient(other_front).get(job)["status"] == "completed"
    assert worker.state()["finished"] == 1
    assert other_worker.state()["requests"] == []
    assert worker.http.get("/v1/jobs").status_code == 404


def test_a_webhook_is_sent_the_finished_job(start: Start, own_broker: NatsServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    with fake_upstream.upstream(fake_upstream.is_json, {}) as receiver:
        flags = ("--webhook-hosts", receiver.url, "--webhook-secret-file", str(secret))
        server = Fleet(start, own_broker, "one").process("all", *flags, "--webhook-allow-private")
        ready(server)
        jobs = JobClient(server)
        refused = jobs.post(webhook="https://example.com/hook").json()["error"]
        assert (refused["code"], refused["param"]) == ("invalid_value", "webhook")

        finished = {}
        for body in ({"prompt": "a cat"}, {"prompt": "fail: it"}):
            job = jobs.ended(jobs.create(webhook=f"{receiver.url}/hook", **body))
            assert receiver.arrived.acquire(timeout=HANG)
            finished[f"job.{job['status']}"] = job
        received = [Webhook(SECRET).verify(asked.body, dict(asked.headers)) for asked in receiver.asked]
    assert {message["type"]: message["data"] for message in received} == finished
    assert finished.keys() == {"job.completed", "job.failed"}
    assert len({asked.headers["webhook-id"] for asked in receiver.asked}) == 2
