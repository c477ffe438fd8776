"""A fleet on the demo model and what happens to it: `python -m tests.fleet_chaos [--requests N] [--jobs N]`.

Requests and jobs run while workers are killed and stopped, the front of the jobs is killed and replaced, and
the broker is killed and started again. The test does the same with fewer of them.
"""

import argparse
import asyncio
import base64
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import nats
import numpy as np
from standardwebhooks import Webhook

from tests.server import fake_upstream, sse
from tests.server.fake_upstream import FakeUpstream
from tests.server.process import HANG, ServerProcess, until
from tests.server.queue.nats_server import NatsServer
from tests.test_chaos import DEMO, Pixels, Wanted, decoded, is_running, streamed

FLAGS = ("--model", str(DEMO), "--dtype", "float32", "--log-level", "warning")
LIMITS = ("--max-backlog-seconds", "3600", "--max-request-seconds", "3600")
SIZES = ((64, 64), (96, 64), (96, 96))
PRESETS = ("V4_TURBO_12", "V4_TURBO_12", "V4_TURBO_12", "V4_DEFAULT_20")
NUM_KINDS = 8
CONCURRENCY = 8
RETRY_SECONDS = 0.2
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
# Streams whose messages are removed once they are dealt with.
EMPTIED = ("WORK", "RESULTS", "JOBS", "WEBHOOKS")


class Fleet:
    """A broker, workers, a front for requests, one for jobs, and a receiver of webhooks. `pids` are those of
    all processes that ran."""

    def __init__(self, stack: ExitStack, num_workers: int) -> None:
        self._stack = stack
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.broker = stack.enter_context(closing(NatsServer(folder)))
        self.receiver = stack.enter_context(fake_upstream.upstream(fake_upstream.is_json, {}))
        self.pids: set[int] = set()
        self.workers = [self._start("worker") for _ in range(num_workers)]
        self.front, self.jobs_front = self._start_front(), self._start_front()
        for server in self._servers:
            until(lambda server=server: is_ready(server))
        self.note_pids()

    @property
    def _servers(self) -> list[ServerProcess]:
        return [self.front, self.jobs_front, *self.workers]

    def _start_front(self) -> ServerProcess:
        webhooks = ("--webhook-hosts", self.receiver.url, "--webhook-allow-private")
        return self._start("front", *LIMITS, *webhooks, IDEOSERVE_WEBHOOK_SECRET=SECRET)

    def _start(self, role: str, *flags: str, **environment: str) -> ServerProcess:
        queue = ("--queue", self.broker.url, "--role", role)
        environment = {"OMP_NUM_THREADS": "1"} | environment
        server = ServerProcess(*FLAGS, *queue, *flags, module="server.__main__", **environment)
        return self._stack.enter_context(closing(server))

    def kill_worker(self) -> None:
        """Another one replaces it."""
        self.note_pids()
        self.workers.pop(0).process.kill()
        self.workers.append(self._start("worker"))

    def kill_device(self) -> None:
        """The process that runs the model; its server starts it again."""
        self.note_pids()
        os.kill(self.workers[0].worker_pid(), signal.SIGKILL)

    def stop_worker(self) -> None:
        self.workers[0].process.send_signal(signal.SIGSTOP)

    def continue_worker(self) -> None:
        self.workers[0].process.send_signal(signal.SIGCONT)

    def replace_jobs_front(self) -> None:
        self.note_pids()
        self.jobs_front.process.kill()
        self.jobs_front = self._start_front()

    def restart_broker(self) -> None:
        self.broker.kill()
        self.broker.start()

    def note_pids(self) -> None:
        for server in self._servers:
            self.pids |= {server.process.pid, *server.worker_pids()}

    def messages(self) -> int:
        """In the streams that are empty in the end."""
        return asyncio.run(_messages(self.broker.url))

    def close(self) -> None:
        """End all servers in order, and wait for their processes."""
        self.note_pids()
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            assert server.exit_code() == 0, server.log
        until(lambda: not any(map(is_running, self.pids)))


async def _messages(url: str) -> int:
    client = await nats.connect(url)
    streams = [await client.jetstream().stream_info(name) for name in EMPTIED]
    await client.close()
    return sum(stream.state.messages for stream in streams)


@contextmanager
def fleet(num_workers: int) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, num_workers)


def requests(count: int, rng: random.Random) -> list[Wanted]:
    """A few different requests, repeated, so that few expected images are made; half of them stream."""
    kinds = [("a red circle", PRESETS[i % 4], SIZES[i % 3], i, 1 + (i % 5 == 0)) for i in range(NUM_KINDS)]
    chosen = [Wanted(*kinds[i % NUM_KINDS], stream=i % 2 == 0) for i in range(count)]
    rng.shuffle(chosen)
    return chosen


def answer(url: str, wanted: Wanted) -> list[Pixels]:
    """The images of a request, which is sent again while it is not accepted."""
    while True:
        response = httpx.post(f"{url}/v1/images", json=wanted.body, timeout=HANG)
        if response.status_code != 503:
            break
        time.sleep(RETRY_SECONDS)  # not accepted; Retry-After is for clients that are not in a hurry
    assert response.status_code == 200, response.text
    if not wanted.stream:
        return [decoded(image["b64_json"]) for image in response.json()["data"]]
    pixels = streamed(response.text).pixels
    assert sorted(pixels) == list(range(wanted.images)), response.text[-500:]
    return [image for index in sorted(pixels) for image in pixels[index]]


class Load:
    """Clients that send requests, in turn, until there are enough answers and `finish` is called."""

    def __init__(self, url: str, wanted: Sequence[Wanted]) -> None:
        self._url = url
        self._wanted = wanted
        self._sent = 0
        self._in_flight: set[int] = set()
        self._changed = threading.Condition()
        self._is_finishing = False
        self._pool = ThreadPoolExecutor(CONCURRENCY)
        self._clients = [self._pool.submit(self._send) for _ in range(CONCURRENCY)]

    def settle(self) -> None:
        """Wait until the requests that are in flight now are answered."""
        with self._changed:
            now = set(self._in_flight)
            assert self._changed.wait_for(lambda: not now & self._in_flight, HANG)

    def finish(self) -> list[tuple[Wanted, list[Pixels]]]:
        """All requests and their images, once all are answered."""
        self._is_finishing = True
        answers = [answer for client in self._clients for answer in client.result()]
        self._pool.shutdown()
        return answers

    def _send(self) -> list[tuple[Wanted, list[Pixels]]]:
        answers = []
        while (number := self._begin()) is not None:
            wanted = self._wanted[number % len(self._wanted)]
            try:
                answers.append((wanted, answer(self._url, wanted)))
            finally:
                self._end(number)
        return answers

    def _begin(self) -> int | None:
        with self._changed:
            if self._is_finishing and self._sent >= len(self._wanted):
                return None
            self._sent += 1
            self._in_flight.add(self._sent - 1)
            return self._sent - 1

    def _end(self, number: int) -> None:
        with self._changed:
            self._in_flight.remove(number)
            self._changed.notify_all()


def create_job(fleet: Fleet, wanted: Wanted) -> str:
    """Returns the id of the job."""
    body = {**wanted.body, "webhook": f"{fleet.receiver.url}/hook"}
    del body["stream"]
    response = fleet.jobs_front.http.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def job_images(fleet: Fleet, job_id: str) -> list[Pixels]:
    """The images of a job, once it is completed; its event stream ends exactly once."""
    http = fleet.jobs_front.http
    events = sse.named(http.get(f"/v1/jobs/{job_id}/events").text.splitlines())
    assert [event.name for event in events if event.name.startswith("job.")][-1:] == ["job.completed"]
    assert sum(event.name == "job.completed" for event in events) == 1
    job = http.get(f"/v1/jobs/{job_id}").json()
    files = [http.get(image["url"]).content for image in job["images"]]
    return [decoded(base64.b64encode(file).decode()) for file in files]


def check_webhooks(receiver: FakeUpstream, jobs: Sequence[str]) -> None:
    """Each job was announced at least once, always with one id."""
    verifier, ids = Webhook(SECRET), dict[str, set[str]]()
    for asked in receiver.asked:
        event = verifier.verify(asked.body, dict(asked.headers))
        assert event["type"] == "job.completed"
        ids.setdefault(event["data"]["id"], set()).add(asked.headers["webhook-id"])
    assert {job: len(found) for job, found in ids.items()} == dict.fromkeys(jobs, 1)


def check_pixels(answers: Sequence[tuple[Wanted, list[Pixels]]], right: dict[object, list[Pixels]]) -> None:
    for wanted, images in answers:
        assert len(images) == wanted.images
        for image, expected in zip(images, right[key(wanted)], strict=True):
            assert np.abs(image - expected).max() <= 1, wanted


def key(wanted: Wanted) -> object:
    """What its pixels depend on."""
    return wanted.prompt, wanted.preset, wanted.size, wanted.seed, wanted.images


def undisturbed(fleet: Fleet, wanted: Sequence[Wanted]) -> dict[object, list[Pixels]]:
    """The images of each kind of request, from a fleet to which nothing happens."""
    kinds = {key(each): each for each in wanted}
    answers = Load(fleet.front.url, list(kinds.values())).finish()
    return {key(each): images for each, images in answers}


def running_jobs(fleet: Fleet) -> set[tuple[str, int]]:
    """Their ids, and when they were started. While the broker is away, the list is asked for again."""
    while True:
        response = fleet.front.http.get("/v1/jobs", params={"status": "running", "limit": 100})
        if response.status_code == 200:
            return {(job["id"], job["started_at"]) for job in response.json()["data"]}
        time.sleep(RETRY_SECONDS)


def is_ready(server: ServerProcess) -> bool:
    return server.http.get("/readyz").status_code == 200


def torment(fleet: Fleet, num_requests: int, num_jobs: int, seed: int) -> None:
    """Send requests and jobs while the fleet is disturbed, and check what becomes of them.

    Between two disturbances, what the first has affected is answered: a request that two workers die with is
    refused. The front is killed first: its jobs are begun again after 20 s, while other things happen.
    """
    wanted = requests(num_requests, random.Random(seed))
    right = undisturbed(fleet, wanted)
    load, jobs = Load(fleet.front.url, wanted), dict[str, Wanted]()
    disturbances = (
        fleet.replace_jobs_front,
        fleet.kill_worker,
        fleet.restart_broker,
        fleet.kill_device,
        fleet.stop_worker,
        fleet.continue_worker,
    )
    orphans: set[tuple[str, int]] = set()
    for number, disturb in enumerate(disturbances):
        share = range(number, num_jobs, len(disturbances))
        jobs |= {create_job(fleet, wanted[each % len(wanted)]): wanted[each % len(wanted)] for each in share}
        disturb()
        running = running_jobs(fleet) - orphans
        load.settle()
        if disturb == fleet.replace_jobs_front:
            orphans = running
        else:
            until(lambda running=running: not running & running_jobs(fleet))
    check_pixels(load.finish(), right)
    check_pixels([(each, job_images(fleet, job)) for job, each in jobs.items()], right)
    until(lambda: fleet.messages() == 0)
    check_webhooks(fleet.receiver, list(jobs))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fleet_chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=60, help="number of requests (default 60)")
    parser.add_argument("--jobs", type=int, default=20, help="number of jobs (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="random seed of their order (default 1)")
    options = parser.parse_args()
    started = time.monotonic()
    with fleet(num_workers=2) as made:
        torment(made, options.requests, options.jobs, options.seed)
        made.close()
    seconds = time.monotonic() - started
    print(f"{options.requests} requests and {options.jobs} jobs have the right pixels, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
