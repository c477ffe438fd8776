"""Nothing lost: worker processes that die, hang and cannot start, seen from the client."""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.calibration import WINDOW
from engine.client import EngineClient
from engine.config import EngineOptions, ModelConfig
from engine.errors import DeadlineExceededError, EngineDeadError, GenerationError, WorkerCrashedError
from engine.messages import EngineRequest, ImageDone, RequestDone, RequestOutput, StepDone, UnitStarted
from tests.engine import fake_worker
from tests.engine.fakes import COST, request

CONFIG = ModelConfig.load(Path(__file__).parents[2] / "models" / "demo")
SECONDS = 60  # before a test that waits for ever fails

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def engine(
    target: Callable[..., None] = fake_worker.main, devices: tuple[str, ...] = ("cpu",), **options: Any
) -> AsyncIterator[EngineClient]:
    """A client whose workers have been told to start."""
    client = EngineClient(CONFIG, EngineOptions(devices, **{"hang_seconds": 20.0} | options), target)
    await client.start()
    try:
        async with asyncio.timeout(SECONDS):
            yield client
    finally:
        await client.close()
        assert not multiprocessing.active_children(), "a worker is left"


async def until(condition: Callable[[], object]) -> None:
    """For what no event tells; the engine's own limit of time ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def collect(client: EngineClient, wanted: EngineRequest) -> list[RequestOutput]:
    return [output async for output in client.generate(wanted)]


def images(outputs: list[RequestOutput]) -> list[tuple[int, bytes]]:
    return [(output.image_index, output.rgb) for output in outputs if isinstance(output, ImageDone)]


def pid() -> int:
    (process,) = multiprocessing.active_children()
    assert process.pid
    return process.pid


async def began(client: EngineClient, wanted: EngineRequest) -> "asyncio.Task[list[RequestOutput]]":
    """Asked for, and with a worker."""
    task = asyncio.create_task(collect(client, wanted))
    await until(lambda: (each := client._in_flight.get(wanted.request_id)) and each.worker)
    return task


async def test_a_request_is_answered_with_its_steps_images_and_times() -> None:
    async with engine() as client:
        outputs = await collect(client, request("a", steps=3, images=2))
    steps = [(each.image_index, each.step) for each in outputs if isinstance(each, StepDone)]
    assert sorted(steps) == [(index, step) for index in (0, 1) for step in (1, 2, 3)]
    assert images(outputs) == [(0, b"a"), (1, b"a")]
    assert isinstance(outputs[-1], RequestDone)
    assert outputs[-1].times.queue >= 0


async def test_requests_wait_while_the_engine_loads() -> None:
    async with engine() as client:
        assert not client.is_ready
        task = asyncio.create_task(collect(client, request("a")))
        await asyncio.sleep(0)
        assert (client.stats().running, client.stats().waiting) == (0, 1)
        assert images(await task)
        assert client.is_ready


# Death.


async def test_images_sent_before_a_kill_are_not_sent_again() -> None:
    async with engine(max_batch_size=1) as client:
        seen: list[RequestOutput] = []
        async for output in client.generate(request("slow:", images=3, steps=30)):
            seen.append(output)
            if isinstance(output, ImageDone) and len(images(seen)) == 1:
                os.kill(pid(), signal.SIGKILL)
        assert sorted(index for index, _ in images(seen)) == [0, 1, 2]
        assert [type(output) for output in seen].count(RequestDone) == 1
        assert client.stats().restarts == 1


async def test_all_requests_of_a_killed_worker_are_answered() -> None:
    async with engine() as client:
        tasks = [await began(client, request(f"slow:{i}", steps=20)) for i in range(5)]
        await until(lambda: client.stats().running == 5)
        os.kill(pid(), signal.SIGKILL)
        await until(lambda: client.stats().waiting == 5)
        assert not client.is_ready
        for index, task in enumerate(tasks):
            assert images(await task) == [(0, f"slow:{index}".encode())]


async def test_a_stopped_worker_is_replaced(tmp_path: Path) -> None:
    async with engine(hang_seconds=1.0) as client:
        outputs = await collect(client, request(f"stop-once:{tmp_path / 'mark'}"))
        assert len(images(outputs)) == 1
        assert client.stats().restarts


async def test_silence_without_work_is_no_hang() -> None:
    async with engine(hang_seconds=4.0) as client:
        await collect(client, request("a"))
        client._workers[0]._heard_at -= 1000
        await asyncio.sleep(1.5)  # the watchdog looks every second
        await collect(client, request("b"))
        assert client.stats().restarts == 0


async def test_the_silence_allowed_scales_with_the_unit_at_work() -> None:
    async with engine(hang_seconds=2.0) as client:
        await collect(client, request("a"))
        (worker,) = client._workers
        worker._on_message(UnitStarted("denoise", ("a",), expected_seconds=0.01))
        assert worker.allowed_silence == 2.0
        worker._on_message(UnitStarted("denoise", ("a",), expected_seconds=3.0))
        assert worker.allowed_silence == 60.0


async def test_a_request_that_crashes_the_worker_once_is_answered(tmp_path: Path) -> None:
    async with engine() as client:
        outputs = await collect(client, request(f"exit-once:{tmp_path / 'mark'}"))
        assert len(images(outputs)) == 1


async def test_a_request_that_crashes_the_worker_again_and_again_fails_alone() -> None:
    async with engine() as client:
        innocent = [await began(client, request(f"slow:{i}", steps=30)) for i in range(3)]
        await until(lambda: client.stats().running == 3)
        with pytest.raises(WorkerCrashedError):
            await collect(client, request("exit:"))
        assert client.stats().restarts in (2, 3), "in a batch, then twice alone"
        for task in innocent:
            assert len(images(await task)) == 1
        assert len(images(await collect(client, request("after")))) == 1


async def test_a_request_that_raises_fails_alone_and_nothing_restarts() -> None:
    async with engine() as client:
        innocent = await began(client, request("slow:", steps=20))
        with pytest.raises(GenerationError, match="ValueError: oops"):
            await collect(client, request("raise:oops"))
        assert len(images(await innocent)) == 1
        assert client.stats().restarts == 0


async def test_restarts_leave_no_descriptors_threads_or_processes() -> None:
    async with engine() as client:
        await collect(client, request("first"))
        before = resources()
        for index in range(5):
            process = pid()
            os.kill(process, signal.SIGKILL)
            await until(lambda: not client.is_ready)
            await collect(client, request(str(index)))
            assert is_gone(process)
        await until(lambda: resources() <= before)


def resources() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), sum("channel" in t.name for t in threading.enumerate())


# Start failures.


async def test_after_repeated_start_failures_the_engine_is_dead() -> None:
    async with engine(fake_worker.ends_while_loading, max_start_failures=2) as client:
        task = asyncio.create_task(collect(client, request("waiting")))
        death = await client.wait_dead()
        assert (str(death), death.exit_code) == ("the worker cannot start: it ended with exit code 7", 1)
        assert client.stats().restarts == 1
        for failing in (task, collect(client, request("late"))):
            with pytest.raises(EngineDeadError):
                await failing
        assert not client.is_ready


async def test_the_reason_of_a_start_failure_is_told() -> None:
    async with engine(fake_worker.raises_while_loading, max_start_failures=1) as client:
        assert str(await client.wait_dead()) == "the worker cannot start: RuntimeError: no such device"


async def test_a_broken_checkpoint_is_not_tried_again() -> None:
    async with engine(fake_worker.has_no_checkpoint) as client:
        death = await client.wait_dead()
        assert (str(death), death.exit_code) == ("model.safetensors: missing key x", 2)
        assert client.stats().restarts == 0


async def test_a_load_that_never_ends_is_a_start_failure() -> None:
    async with engine(
        fake_worker.slow_to_start, load_seconds=0.2, hang_seconds=0.2, max_start_failures=1
    ) as client:
        assert "no sign of life" in str(await client.wait_dead())


# Deadlines and aborts.


async def test_a_deadline_passes_while_the_engine_loads() -> None:
    async with engine(fake_worker.slow_to_start) as client:
        with pytest.raises(DeadlineExceededError):
            await collect(client, request("a", deadline=time.monotonic() + 0.05))
        assert client.stats().waiting == 0


async def test_a_deadline_is_put_off_while_the_request_waits_for_it() -> None:
    async with engine(fake_worker.slow_to_start) as client:
        deadline = time.monotonic() + 0.1
        waiting = asyncio.create_task(collect(client, request("a", deadline=deadline)))
        await asyncio.sleep(0)
        client.promote("a", deadline + 0.2, "interactive")
        client.promote("a", deadline + 0.1, "interactive")  # never shortened
        client.promote("b", deadline, "interactive")  # not in flight
        with pytest.raises(DeadlineExceededError):
            await waiting
        assert time.monotonic() >= deadline + 0.2


async def test_past_its_deadline_a_request_has_no_seat_any_more() -> None:
    async with engine(max_running=1) as client:
        await collect(client, request("first"))
        with pytest.raises(DeadlineExceededError):
            await collect(client, request("slow:", steps=10**6, deadline=time.monotonic() + 0.2))
        assert len(images(await collect(client, request("next")))) == 1
        assert client.stats().restarts == 0


async def test_a_request_that_is_left_has_no_seat_any_more() -> None:
    async with engine(max_running=1) as client:
        outputs = client.generate(request("slow:", steps=10**6))
        assert isinstance(await anext(outputs), StepDone)
        waiting = await began(client, request("next"))
        await outputs.aclose()
        assert len(images(await waiting)) == 1


async def test_closing_answers_what_is_still_asked_for() -> None:
    async with engine() as client:
        task = await began(client, request("slow:", steps=10**6))
    with pytest.raises(EngineDeadError):
        await task


# Costs.


async def test_a_wrong_warm_up_is_corrected_by_the_work_done() -> None:
    """The machine was busy then: each prediction of the worker is eight times what it takes."""
    async with engine(fake_worker.measured_wrong) as client:
        await until(lambda: client.is_ready)
        wanted, right = request("next"), COST.request_seconds(request("next"))
        (before,) = client.forecast(wanted)
        assert (before.own, before.is_proven) == (pytest.approx(8 * right), False)
        for index in range(WINDOW):
            await collect(client, request(str(index)))
        (after,) = client.forecast(wanted)
        assert (after.own, after.is_proven) == (pytest.approx(right, rel=0.1), True)


async def test_a_worker_that_starts_again_is_measured_again() -> None:
    async with engine(fake_worker.measured_wrong) as client:
        for index in range(WINDOW):
            await collect(client, request(str(index)))
        os.kill(pid(), signal.SIGKILL)
        await until(lambda: not client.is_ready)
        await until(lambda: client.is_ready)
        (forecast,) = client.forecast(request("next"))
        assert forecast.own == pytest.approx(8 * COST.request_seconds(request("next")))
        assert not forecast.is_proven


# Priorities.


async def test_a_promoted_request_is_served_by_its_worker_before_later_ones() -> None:
    async with engine(max_batch_size=1) as client:
        outputs: list[str] = []

        async def serve(wanted: EngineRequest) -> None:
            await collect(client, wanted)
            outputs.append(wanted.request_id)

        tasks = [asyncio.create_task(serve(request("slow:batch", steps=10, priority="batch")))]
        await until(lambda: client.stats().running)
        tasks += [asyncio.create_task(serve(request(f"slow:{i}", steps=100))) for i in range(2)]
        await until(lambda: client.stats().running == 2)
        client.promote("slow:batch", None, "interactive")
        client.promote("slow:batch", None, "batch")
        client.promote("nobody", None, "interactive")
        await asyncio.gather(*tasks)
        assert outputs == ["slow:batch", "slow:0", "slow:1"]


async def test_batch_is_answered_while_interactive_requests_of_its_size_keep_coming() -> None:
    async with engine(max_batch_size=2, max_running=4) as client:
        batch: asyncio.Task[list[RequestOutput]] | None = None
        names = iter(f"slow:{number}" for number in range(300))

        async def keep_asking() -> None:
            for name in names:
                await collect(client, request(name, steps=2))
                if batch and batch.done():
                    return

        clients = [asyncio.create_task(keep_asking()) for _ in range(16)]
        await until(lambda: client.stats().running)
        batch = asyncio.create_task(collect(client, request("slow:batch", steps=2, priority="batch")))
        await asyncio.gather(*clients)
        assert batch.done(), "300 interactive requests were served before it"


# Several devices.


async def test_requests_go_to_the_device_with_the_least_predicted_backlog() -> None:
    async with engine(devices=("cpu", "cpu")) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        assert client.backlog_seconds("batch") == 0
        long = await began(client, request("slow:long", steps=10_000))
        short = [await began(client, request(f"slow:{i}", steps=1000)) for i in range(3)]
        (first, *others) = [each.worker for each in client._in_flight.values()]
        assert len(set(others)) == 1
        assert first not in others
        assert 0 < client.backlog_seconds("batch") < client._backlog.loads().ahead(first, "batch")
        for task in (long, *short):
            task.cancel()


async def test_what_waits_is_shared_with_a_device_that_becomes_ready_later() -> None:
    async with engine(devices=("cpu", "cpu"), max_running=1) as client:
        tasks = [await began(client, request(f"slow:{i}", steps=10_000)) for i in range(4)]
        await until(lambda: all(worker.is_ready for worker in client._workers))
        workers = [each.worker for each in client._in_flight.values()]
        assert all(workers.count(worker) == 2 for worker in client._workers)
        for task in tasks:
            task.cancel()


async def test_one_device_serves_while_another_restarts() -> None:
    async with engine(devices=("cpu", "cpu")) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        multiprocessing.active_children()[0].kill()
        for name in "abcd":
            assert len(images(await collect(client, request(name)))) == 1
            assert client.is_ready


# Signals and orphans.


async def test_a_signal_to_the_whole_group_does_not_end_the_worker() -> None:
    async with engine() as client:
        task = await began(client, request("slow:", steps=30))
        await until(lambda: client.stats().running)
        os.kill(pid(), signal.SIGTERM)
        os.kill(pid(), signal.SIGINT)
        assert len(images(await task)) == 1
        assert client.stats().restarts == 0


PARENT = """
import asyncio
from tests.engine.test_client import engine, fake_worker, pid, request, collect

async def main():
    async with engine(hang_seconds=60.0) as client:
        await collect(client, request("a"))
        print(pid(), flush=True)
        await collect(client, request("hold:"))

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_no_worker_outlives_its_parent_not_even_one_that_was_stopped() -> None:
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert parent.stdout
    with parent.stdout:
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    async with asyncio.timeout(SECONDS):
        await until(lambda: is_gone(worker))


def is_gone(process: int) -> bool:
    """Not running: an orphan may wait for init to take note of its end."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True
