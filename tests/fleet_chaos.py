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
from collections.abc import Callable, Iterator, Sequence
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
PRESETS = ("V4_TURBO_12", "V4_TURBO_12", "V4_DEFAULT_20", "V4_QUALITY_48")
NUM_KINDS = 8
CONCURRENCY = 16
RETRY_SECONDS = 0.2
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
# Streams whose messages are removed once they are dealt with.
EMPTIED = ("WORK", "RESULTS", "JOBS", "WEBHOOKS")

# Number of answers after which an action happens.
Plan = Sequence[tuple[int, Callable[[], None]]]


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
        server = ServerProcess(*FLAGS, *queue, *flags, module="server", **environment)
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


class Progress:
    """Counts answers, and runs each action of a plan in a thread once enough have arrived."""

    def __init__(self, plan: Plan) -> None:
        self._answers = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(plan,))
        self._thread.start()

    def answered(self) -> None:
        with self._changed:
            self._answers += 1
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the last action."""
        self._thread.join(HANG)
        assert not self._thread.is_alive()

    def _run(self, plan: Plan) -> None:
        for after, action in plan:
            with self._changed:
                self._changed.wait_for(lambda after=after: self._answers >= after, HANG)
            action()


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


def run(fleet: Fleet, wanted: Sequence[Wanted], plan: Plan) -> list[list[Pixels]]:
    """The images of all requests, while the plan happens."""
    progress = Progress(plan)

    def one(each: Wanted) -> list[Pixels]:
        try:
            return answer(fleet.front.url, each)
        finally:
            progress.answered()

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        answers = list(pool.map(one, wanted))
    progress.join()
    return answers


def disturbances(fleet: Fleet, count: int) -> Plan:
    """Spread over the answers."""
    actions = (
        fleet.replace_jobs_front,
        fleet.kill_worker,
        fleet.restart_broker,
        fleet.kill_device,
        fleet.stop_worker,
        fleet.continue_worker,
    )
    return [(count * (number + 1) // (len(actions) + 2), each) for number, each in enumerate(actions)]


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


def check_pixels(
    wanted: Sequence[Wanted], answers: list[list[Pixels]], right: dict[object, list[Pixels]]
) -> None:
    for each, images in zip(wanted, answers, strict=True):
        assert len(images) == each.images
        for image, expected in zip(images, right[key(each)], strict=True):
            assert np.abs(image - expected).max() <= 1, each


def key(wanted: Wanted) -> object:
    """What its pixels depend on."""
    return wanted.prompt, wanted.preset, wanted.size, wanted.seed, wanted.images


def undisturbed(fleet: Fleet, wanted: Sequence[Wanted]) -> dict[object, list[Pixels]]:
    """The images of each kind of request, from a fleet to which nothing happens."""
    kinds = list({key(each): each for each in wanted}.values())
    return dict(zip(map(key, kinds), run(fleet, kinds, ()), strict=True))


def is_ready(server: ServerProcess) -> bool:
    return server.http.get("/readyz").status_code == 200


def torment(fleet: Fleet, num_requests: int, num_jobs: int, seed: int) -> None:
    """Send requests and jobs while the fleet is disturbed, and check what becomes of them."""
    wanted = requests(num_requests + num_jobs, random.Random(seed))
    right = undisturbed(fleet, wanted)
    sent, as_jobs = wanted[:num_requests], wanted[num_requests:]
    jobs = [create_job(fleet, each) for each in as_jobs]
    check_pixels(sent, run(fleet, sent, disturbances(fleet, num_requests)), right)
    check_pixels(as_jobs, [job_images(fleet, job) for job in jobs], right)
    until(lambda: fleet.messages() == 0)
    check_webhooks(fleet.receiver, jobs)


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
