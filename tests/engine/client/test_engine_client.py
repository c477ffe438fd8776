"""Every request is answered while worker processes die, hang or fail to start."""

import asyncio
import contextlib
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

from engine.client import worker_supervisor
from engine.client.engine_client import EngineClient
from engine.client.restart_backoff import RestartBackoff
from engine.client.worker_supervisor import WorkerSupervisor
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from engine.errors import DeadlineExceededError, EngineDeadError, GenerationError, WorkerCrashedError
from engine.messages import ImageDone, RequestDone, RequestOutput, StepDone, UnitDone, UnitStarted
from engine.request import EngineRequest, SourceImage
from engine.worker.calibration import WINDOW
from tests.engine import fake_worker
from tests.engine.fakes import COST, content, request

CONFIG = ModelConfig.load(Path(__file__).parents[3] / "models" / "demo")
SECONDS = 60  # limit of a test

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def engine(
    target: Callable[..., None] = fake_worker.main, devices: tuple[str, ...] = ("cpu",), **options: Any
) -> AsyncIterator[EngineClient]:
    """A client whose workers are starting."""
    client = EngineClient(CONFIG, EngineOptions(devices, **{"hang_seconds": 20.0} | options), target)
    await client.start()
    try:
        async with asyncio.timeout(SECONDS):
            yield client
    finally:
        await client.close()
        assert not multiprocessing.active_children(), "a worker is left"


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition that has no event. `engine` limits the time."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def collect(
    client: EngineClient, wanted: EngineRequest, deadline: float | None = None
) -> list[RequestOutput]:
    client.reserve(wanted, deadline)
    return [output async for output in client.generate(wanted)]


def images(outputs: list[RequestOutput]) -> list[tuple[int, bytes]]:
    return [(output.image_index, output.rgb) for output in outputs if isinstance(output, ImageDone)]


def pid() -> int:
    (process,) = multiprocessing.active_children()
    assert process.pid
    return process.pid


async def dispatched(client: EngineClient, wanted: EngineRequest) -> "asyncio.Task[list[RequestOutput]]":
    """Generate a request until it is dispatched."""
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
        tasks = [await dispatched(client, request(f"slow:{i}", steps=20)) for i in range(5)]
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


async def test_an_idle_worker_that_is_stopped_is_replaced() -> None:
    async with engine(hang_seconds=1.0) as client:
        await collect(client, request("a"))
        os.kill(pid(), signal.SIGSTOP)
        await until(lambda: client.stats().restarts)
        assert len(images(await collect(client, request("b")))) == 1


async def test_a_stopped_worker_is_replaced_while_requests_time_out() -> None:
    async with engine(hang_seconds=1.0) as client:
        await collect(client, request("first"))
        os.kill(pid(), signal.SIGSTOP)
        while not client.stats().restarts:
            with contextlib.suppress(DeadlineExceededError):
                await collect(client, request("a"), deadline=time.monotonic() + 0.1)
        assert len(images(await collect(client, request("last")))) == 1


async def test_an_idle_worker_does_not_count_as_hung() -> None:
    async with engine(hang_seconds=1.0) as client:
        await collect(client, request("a"))
        (worker,) = client._workers
        heard: list[float] = []
        worker._heartbeat.heard = lambda: heard.append(worker._heartbeat.seconds)  # type: ignore[method-assign]
        await until(lambda: len(heard) > 2)


async def test_the_allowed_silence_scales_with_the_unit_of_work() -> None:
    async with engine(hang_seconds=2.0) as client:
        await collect(client, request("a"))
        (worker,) = client._workers
        worker._on_message(UnitStarted("denoise", ("a",), expected_seconds=0.01))
        assert worker._heartbeat.allowed == 2.0
        worker._on_message(UnitStarted("denoise", ("a",), expected_seconds=3.0))
        assert worker._heartbeat.allowed == 60.0
        worker._on_message(UnitDone("denoise", 1, 3.0, 0, 0, 0))
        assert worker._heartbeat.allowed == 2.0


async def test_an_engine_whose_only_device_is_silent_is_not_ready_until_it_answers() -> None:
    async with engine(hang_seconds=4.0) as client:
        await collect(client, request("first"))
        process = pid()
        os.kill(process, signal.SIGSTOP)
        before = asyncio.create_task(collect(client, request("before")))
        await until(lambda: not client.is_ready)
        assert client.stats().devices == {"ready": 0, "silent": 1, "starting": 0, "failed": 0}
        after = asyncio.create_task(collect(client, request("after")))
        await until(lambda: len(client._in_flight) == 2)
        os.kill(process, signal.SIGCONT)
        assert images(await before) + images(await after) == [(0, b"before"), (0, b"after")]
        assert client.is_ready
        assert client.stats().restarts == 0


async def test_a_worker_whose_child_holds_the_pipe_is_replaced(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    try:
        async with engine(hang_seconds=1.0) as client:
            outputs = await collect(client, request(f"leave-a-child:{mark}"))
            assert len(images(outputs)) == 1
    finally:
        os.kill(int(mark.read_text()), signal.SIGKILL)


async def test_closing_ends_a_stopped_worker_with_a_full_pipe() -> None:
    async with engine(hang_seconds=4.0) as client:
        await collect(client, request("first"))
        os.kill(pid(), signal.SIGSTOP)
        task = await dispatched(client, request("large", prompt_tokens=1 << 20))
        await until(lambda: client._workers[0].is_silent)
    with pytest.raises(EngineDeadError):
        await task


async def test_a_request_that_crashes_the_worker_once_is_answered(tmp_path: Path) -> None:
    async with engine() as client:
        outputs = await collect(client, request(f"exit-once:{tmp_path / 'mark'}"))
        assert len(images(outputs)) == 1


async def test_an_edit_that_runs_again_has_its_pixels(tmp_path: Path) -> None:
    source = SourceImage(os.urandom(3 * 256 * 256), os.urandom(256 * 256), 0.5, "")
    wanted = request(f"exit-once:{tmp_path / 'crashed'}", (256, 256), source=source)
    async with engine() as client:
        assert images(await collect(client, wanted)) == [(0, content(wanted))]
        assert client.stats().restarts == 1


async def test_a_request_that_crashes_every_worker_fails_alone() -> None:
    async with engine() as client:
        bystander = [await dispatched(client, request(f"slow:{i}", steps=30)) for i in range(3)]
        await until(lambda: client.stats().running == 3)
        with pytest.raises(WorkerCrashedError):
            await collect(client, request("exit:"))
        assert client.stats().restarts in (2, 3), "in a batch, then twice alone"
        for task in bystander:
            assert len(images(await task)) == 1
        assert len(images(await collect(client, request("after")))) == 1


async def test_a_request_that_raises_fails_alone_and_nothing_restarts() -> None:
    async with engine() as client:
        bystander = await dispatched(client, request("slow:", steps=20))
        with pytest.raises(GenerationError, match="ValueError: oops"):
            await collect(client, request("raise:oops"))
        assert len(images(await bystander)) == 1
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


# Supervision.


def test_a_worker_is_restarted_however_often_it_died() -> None:
    backoff, pauses = RestartBackoff(max_start_failures=3), []
    for _ in range(5000):
        backoff.died(was_ready=True, is_permanent=False)
        pauses.append(backoff.pause_seconds)
    assert pauses[:4] == [0, 0.5, 1.5, 3.5]
    assert pauses[-1] == 30


async def test_a_process_that_cannot_be_spawned_is_a_start_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(worker_supervisor, "WorkerProcess", failing(OSError("too many open files")))
        async with engine() as client:
            await until(lambda: client._workers[0].backoff.deaths)
            patch.undo()
            assert len(images(await collect(client, request("a")))) == 1


async def test_a_listener_that_raises_costs_no_request() -> None:
    async with engine() as client:
        client.subscribe(failing(KeyError("listener")))
        assert len(images(await collect(client, request("a")))) == 1
        os.kill(pid(), signal.SIGKILL)
        await until(lambda: not client.is_ready)
        assert len(images(await collect(client, request("b")))) == 1


def failing(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


# Start failures.


async def test_after_repeated_start_failures_the_engine_is_dead() -> None:
    async with engine(fake_worker.ends_while_loading, max_start_failures=2) as client:
        task = asyncio.create_task(collect(client, request("waiting")))
        death = await client.wait_dead()
        assert (str(death), death.exit_code) == ("the worker cannot start: the process exited with code 7", 1)
        assert client.stats().restarts == 1
        for failing in (task, collect(client, request("late"))):
            with pytest.raises(EngineDeadError):
                await failing
        assert not client.is_ready


async def test_each_request_to_a_dead_engine_raises_a_new_error() -> None:
    """An exception that is raised again keeps its traceback, and with it the frames of earlier requests."""
    async with engine(fake_worker.has_no_checkpoint) as client:
        waiting = [asyncio.create_task(collect(client, request(name))) for name in "ab"]
        await client.wait_dead()
        late = [asyncio.create_task(collect(client, request(name))) for name in "cd"]
        errors = await asyncio.gather(*waiting, *late, return_exceptions=True)
        assert {str(error) for error in errors} == {"model.safetensors: missing key x"}
        assert len({id(error) for error in errors}) == len(errors)


async def test_the_reason_of_a_start_failure_is_reported() -> None:
    async with engine(fake_worker.raises_while_loading, max_start_failures=1) as client:
        assert str(await client.wait_dead()) == "the worker cannot start: RuntimeError: no such device"


async def test_a_broken_checkpoint_is_not_retried() -> None:
    async with engine(fake_worker.has_no_checkpoint) as client:
        death = await client.wait_dead()
        assert (str(death), death.exit_code) == ("model.safetensors: missing key x", 2)
        assert client.stats().restarts == 0


async def test_a_load_that_never_ends_is_a_start_failure() -> None:
    async with engine(
        fake_worker.slow_to_start, load_seconds=0.2, hang_seconds=0.2, max_start_failures=1
    ) as client:
        assert "no message for 0 s" in str(await client.wait_dead())


async def test_a_device_that_cannot_start_is_retried_while_others_serve(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    devices = ("cpu", f"exit:{mark}")
    async with engine(fake_worker.fails_until_file_exists, devices, max_start_failures=2) as client:
        await until(lambda: client.stats().devices["failed"] and client.is_ready)
        assert len(images(await collect(client, request("a")))) == 1
        process_of(client._workers[0]).kill()
        assert len(images(await collect(client, request("b")))) == 1
        mark.touch()
        await until(lambda: client.stats().devices["ready"] == 2)


async def test_the_engine_is_dead_once_no_device_can_start(tmp_path: Path) -> None:
    devices = (f"exit:{tmp_path / 'a'}", f"exit:{tmp_path / 'b'}")
    async with engine(fake_worker.fails_until_file_exists, devices, max_start_failures=2) as client:
        assert (await client.wait_dead()).exit_code == 1
        assert client.stats().devices["failed"] == 2


async def test_a_broken_checkpoint_does_not_end_devices_that_serve(tmp_path: Path) -> None:
    devices = ("cpu", f"exit:{tmp_path / 'late'}")
    async with engine(fake_worker.fails_until_file_exists, devices) as client:
        await until(lambda: client.is_ready)
        client._workers[1].device = f"checkpoint:{tmp_path / 'none'}"
        await until(lambda: client._workers[1]._is_permanent and client.stats().devices["failed"])
        assert len(images(await collect(client, request("a")))) == 1


async def test_a_broken_checkpoint_ends_an_engine_that_is_still_loading(tmp_path: Path) -> None:
    async with engine(fake_worker.loads_or_has_no_checkpoint, ("slow", "none")) as client:
        assert (await client.wait_dead()).exit_code == 2


# Deadlines and aborts.


async def test_a_deadline_passes_while_the_engine_loads() -> None:
    async with engine(fake_worker.slow_to_start) as client:
        with pytest.raises(DeadlineExceededError):
            await collect(client, request("a"), deadline=time.monotonic() + 0.05)
        assert client.stats().waiting == 0


async def test_a_deadline_is_extended_while_the_request_waits() -> None:
    async with engine(fake_worker.slow_to_start) as client:
        deadline = time.monotonic() + 0.1
        waiting = asyncio.create_task(collect(client, request("a"), deadline))
        await asyncio.sleep(0)
        client.promote("a", deadline + 0.2, "interactive")
        client.promote("a", deadline + 0.1, "interactive")  # never shortened
        client.promote("b", deadline, "interactive")  # not in flight
        with pytest.raises(DeadlineExceededError):
            await waiting
        assert time.monotonic() >= deadline + 0.2


async def test_a_request_frees_its_seat_at_its_deadline() -> None:
    async with engine(max_running=1) as client:
        await collect(client, request("first"))
        with pytest.raises(DeadlineExceededError):
            await collect(client, request("slow:", steps=10**6), deadline=time.monotonic() + 0.2)
        assert len(images(await collect(client, request("next")))) == 1
        assert client.stats().restarts == 0


async def test_a_request_that_is_closed_frees_its_seat() -> None:
    async with engine(max_running=1) as client:
        outputs = client.generate(request("slow:", steps=10**6))
        assert isinstance(await anext(outputs), StepDone)
        waiting = await dispatched(client, request("next"))
        await outputs.aclose()
        assert len(images(await waiting)) == 1


async def test_closing_answers_the_requests_in_flight() -> None:
    async with engine() as client:
        task = await dispatched(client, request("slow:", steps=10**6))
    with pytest.raises(EngineDeadError):
        await task


# Costs.


async def test_a_wrong_warm_up_is_corrected_by_observed_work() -> None:
    """The machine was busy during the warm-up: predictions are eight times too high."""
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
        tasks += [asyncio.create_task(serve(request(f"slow:{i}", steps=30))) for i in range(2)]
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


async def test_one_device_serves_while_another_restarts() -> None:
    async with engine(devices=("cpu", "cpu")) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        multiprocessing.active_children()[0].kill()
        for name in "abcd":
            assert len(images(await collect(client, request(name)))) == 1
            assert client.is_ready


async def test_requests_that_a_silent_device_has_not_begun_move_to_another() -> None:
    async with engine(devices=("one", "two"), hang_seconds=12.0) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        stopped, healthy = client._workers
        os.kill(process_of(stopped).pid, signal.SIGSTOP)
        assert len(images(await collect(client, request("moved")))) == 1
        assert stopped.is_silent
        assert stopped.is_ready, "it was preferred until it was not ready"
        waiting = await dispatched(client, request("slow:", steps=20))
        assert client._in_flight["slow:"].worker is healthy
        assert len(images(await waiting)) == 1
        assert client.stats().restarts == 0
        assert client.is_ready


async def test_requests_that_a_silent_device_has_begun_run_again_after_it_is_killed() -> None:
    async with engine(devices=("one", "two"), hang_seconds=1.0) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        task = await dispatched(client, request("slow:", steps=100))
        await until(lambda: client.stats().running)
        os.kill(process_of(client._workers[0]).pid, signal.SIGSTOP)
        assert len(images(await task)) == 1
        assert client._workers[0].backoff.deaths


async def test_a_request_that_hangs_workers_does_not_move_to_every_device() -> None:
    async with engine(devices=("one", "two", "three"), hang_seconds=1.0) as client:
        await until(lambda: all(worker.is_ready for worker in client._workers))
        with pytest.raises(WorkerCrashedError):
            await collect(client, request("stop:"))
        assert client._workers[2].state == "ready"
        assert not client._workers[2].is_silent
        await until(lambda: [worker.backoff.deaths for worker in client._workers] == [1, 1, 0])


def process_of(worker: WorkerSupervisor) -> Any:
    return next(each for each in multiprocessing.active_children() if each.name == worker._name)


# Pauses.


PAUSED = """
import asyncio, sys
from tests.engine.client.test_engine_client import dispatched, engine, pid, request, until

async def main():
    async with engine(hang_seconds=1.0) as client:
        task = await dispatched(client, request("slower:", steps=10**6))
        (in_flight,) = client._in_flight.values()
        await until(lambda: in_flight.steps_done)
        print(pid(), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        seen = in_flight.steps_done[0]
        await until(lambda: client.stats().restarts or in_flight.steps_done.get(0, 0) > seen + 1)
        print(client.stats().restarts, flush=True)
        task.cancel()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("is_worker_stopped_too", [False, True])
async def test_a_pause_of_the_server_does_not_count_as_a_hang(is_worker_stopped_too: bool) -> None:
    command = [sys.executable, "-c", PAUSED]
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        processes = [server.pid, *[int(server.stdout.readline())] * is_worker_stopped_too]
        for each in processes:
            os.kill(each, signal.SIGSTOP)
        await asyncio.sleep(1.5)  # longer than the allowed silence
        for each in processes:
            os.kill(each, signal.SIGCONT)
            await asyncio.sleep(0.3)  # the server checks before its worker can send
        server.stdin.write("\n")
        server.stdin.flush()
        assert server.stdout.readline() == "0\n"


# Signals and orphans.


async def test_a_signal_to_the_whole_group_does_not_end_the_worker() -> None:
    async with engine() as client:
        task = await dispatched(client, request("slow:", steps=30))
        await until(lambda: client.stats().running)
        os.kill(pid(), signal.SIGTERM)
        os.kill(pid(), signal.SIGINT)
        assert len(images(await task)) == 1
        assert client.stats().restarts == 0


PARENT = """
import asyncio
from tests.engine.client.test_engine_client import engine, fake_worker, pid, request, collect

async def main():
    async with engine(hang_seconds=60.0) as client:
        await collect(client, request("a"))
        print(pid(), flush=True)
        await collect(client, request("hold:"))

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_a_worker_dies_with_its_parent_even_if_it_is_stopped() -> None:
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
    """Whether a process has exited. A zombie may wait for init to reap it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True
