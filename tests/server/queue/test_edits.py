"""Edits in a fleet: their images cross the broker in chunks, and are gone with the answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import nats

from server.queue import names
from tests.server.edits.client import edit, made
from tests.server.edits.pictures import encoded, hole, noise
from tests.server.process import until
from tests.server.queue.fleet import Fleet, ready


def stored(fleet: Fleet) -> int:
    """Messages with images of all fronts."""
    return asyncio.run(_stored(fleet))


async def _stored(fleet: Fleet) -> int:
    client = await nats.connect(fleet.broker.url)
    state = (await client.jetstream().stream_info(names.UPLOADS.name)).state
    await client.close()
    return state.messages


def test_an_edit_whose_worker_dies_runs_again(own_fleet: Fleet, pool: ThreadPoolExecutor) -> None:
    """With an image that is larger than a message, and a mask."""
    processes = [own_fleet.process(role, FAKE_MAX_SIZE="1024") for role in ("worker", "worker", "front")]
    ready(*processes)
    *workers, front = processes
    image, mask = noise(640, 640), encoded(hole(640, 640, (0, 0, 16, 16)))
    png = {"Accept": "image/png"}
    sent = pool.submit(edit, front, encoded(image), mask, png, prompt="hold: a", num_inference_steps="1")
    until(lambda: any(worker.state()["running"] for worker in workers))
    assert stored(own_fleet) > 1
    (dead,) = [worker for worker in workers if worker.state()["running"]]
    (other,) = [worker for worker in workers if worker is not dead]
    dead.process.kill()
    other.wait(running=1)
    other.release()
    found = made(sent.result())
    assert found.getpixel((0, 0)) == (5, 64, 128)
    assert found.crop((16, 0, 640, 640)).tobytes() == image.crop((16, 0, 640, 640)).tobytes()
    until(lambda: stored(own_fleet) == 0)
