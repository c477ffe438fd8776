"""Predicted seconds of the requests in flight, on stub workers."""

import asyncio
import math
from contextlib import aclosing
from dataclasses import replace

import pytest

from engine.client.backlog import Forecast
from engine.client.engine_client import EngineClient
from engine.client.worker_supervisor import WorkerSupervisor
from engine.config.options import EngineOptions
from engine.messages import RequestDone, StepDone, UnitDone, WorkerReady
from engine.request import EngineRequest, Priority, SamplingParams
from tests.engine import fakes
from tests.engine.fakes import COST, Engine
from tests.engine.stub_worker import CONFIG, SECOND, client, work

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(
    name: str, seconds: int = 4, images: int = 1, priority: Priority = "interactive", width: int = 64
) -> EngineRequest:
    """Each image takes `seconds`."""
    sampling = SamplingParams((1.0,) * seconds, 0, 1)
    return EngineRequest(name, (1,), width, 64, tuple(range(images)), sampling, priority=priority)


async def start(engine: EngineClient, wanted: EngineRequest) -> "asyncio.Task[None]":
    """Generate a request until it is dispatched."""

    async def collect() -> None:
        async with aclosing(engine.generate(wanted)) as outputs:
            async for _ in outputs:
                pass

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    return task


# The rest of a request.


@pytest.mark.parametrize("images", [1, 2, 10])
async def test_each_step_of_any_image_takes_its_share(images: int) -> None:
    engine = client()
    task = await start(engine, request("a", seconds=20, images=images))
    for left in range(20 * images, 0, -1):
        assert engine.backlog_seconds("interactive") == left
        work(engine, 1)
    assert engine.backlog_seconds("interactive") == 0
    await task


async def test_steps_of_images_that_run_together_are_summed() -> None:
    """A step of any image is one of the request's forty."""
    engine = client()
    task = await start(engine, request("a", seconds=4, images=10))
    for image in (9, 0, 5):
        engine.on_message(engine._workers[0], StepDone("a", image, 1, 4))
    assert engine.backlog_seconds("interactive") == 37
    task.cancel()


async def test_a_request_that_runs_again_costs_again_what_is_left() -> None:
    engine = client()
    task = await start(engine, request("a", seconds=4, images=3))
    work(engine, 6)
    assert engine.backlog_seconds("interactive") == 6
    assert (engine.stats().running, engine.stats().waiting) == (1, 0)
    (worker,) = engine._workers
    worker.is_ready = False  # type: ignore[misc]
    engine.on_death(worker, ())
    assert engine.backlog_seconds("interactive") == 8, "the first image was sent"
    assert (engine.stats().running, engine.stats().waiting) == (0, 1)
    task.cancel()


# Reservations.


async def test_a_reservation_counts_until_it_is_released() -> None:
    engine = client()
    engine.reserve(request("a", seconds=4))
    engine.reserve(request("a", seconds=6))
    assert engine.backlog_seconds("interactive") == 6
    assert engine.stats().waiting == 1
    engine.release("a")
    engine.release("a")
    assert engine.backlog_seconds("interactive") == 0
    assert engine.stats().waiting == 0


async def test_a_reservation_that_is_generated_counts_once() -> None:
    engine = client()
    engine.reserve(request("a", seconds=4))
    task = await start(engine, request("a", seconds=4))
    assert engine.backlog_seconds("interactive") == 4
    work(engine, 4)
    await task
    assert engine.backlog_seconds("interactive") == 0


async def test_a_reservation_is_not_sent_to_a_worker() -> None:
    engine = client(2)
    engine.reserve(request("a"))
    for worker in engine._workers:
        engine.on_availability(worker)
    assert not any(worker.queue for worker in engine._workers)  # type: ignore[attr-defined]


async def test_a_request_is_not_ahead_of_itself() -> None:
    engine = client()
    engine.reserve(request("a", seconds=4))
    (forecast,) = engine.forecast(request("a", seconds=5))
    assert (forecast.ahead, forecast.own) == (0, 5)


# Priorities.


async def test_batch_is_not_ahead_of_interactive_on_any_device() -> None:
    engine = client(2)
    for index in range(4):
        engine.reserve(request(str(index), seconds=4, priority="batch"))
    engine.reserve(request("now", seconds=3))
    assert engine.backlog_seconds("interactive") == 0
    assert [forecast.ahead for forecast in engine.forecast(request("next"))] == [3, 0]
    assert engine.backlog_seconds("batch") == 8


async def test_interactive_requests_prefer_the_device_with_less_batch_work() -> None:
    engine = client(2)
    tasks = [
        await start(engine, request("batch", seconds=4, priority="batch")),
        await start(engine, request("now")),
    ]
    assert [list(worker.queue) for worker in engine._workers] == [["batch"], ["now"]]  # type: ignore[attr-defined]
    for task in tasks:
        task.cancel()


async def test_a_raised_priority_counts_at_once() -> None:
    engine = client()
    in_flight = engine.reserve(request("a", seconds=4, priority="batch"))
    in_flight.request = replace(in_flight.request, priority="interactive")
    assert engine.backlog_seconds("interactive") == 4


# The share of batch work.


@pytest.mark.parametrize(("own", "batch", "total"), [(10, {64: 100}, 11), (20, {64: 1}, 21), (10, {}, 10)])
async def test_batch_work_takes_its_share_of_the_device_from_an_interactive_request(
    own: int, batch: dict[int, int], total: float
) -> None:
    engine = client()
    for width, seconds in batch.items():
        engine.reserve(request("batch", seconds, priority="batch", width=width))
    (forecast,) = engine.forecast(request("now", own))
    assert forecast.total == pytest.approx(total)
    assert (forecast.ahead, forecast.own) == (0, own), "the queue is not longer"


async def test_batch_work_of_each_resolution_has_a_share() -> None:
    engine = client()
    for width in (64, 96, 128):
        engine.reserve(request(f"batch-{width}", 100, priority="batch", width=width))
    engine.reserve(request("before", 10))
    (forecast,) = engine.forecast(request("now", 10))
    assert forecast.total == pytest.approx(26)
    assert engine.first_done_seconds(["before"]) == pytest.approx(13)


async def test_a_batch_request_waits_for_all_work() -> None:
    engine = client()
    engine.reserve(request("now", 10))
    engine.reserve(request("batch", 5, priority="batch"))
    (forecast,) = engine.forecast(request("next", 1, priority="batch"))
    assert forecast.total == 16


def test_the_forecast_is_an_upper_bound_for_the_scheduler_beside_batch_work() -> None:
    """A tenth of the device is more than a forecast of interactive work alone allows for."""
    engine = Engine(max_batch_size=1)
    engine.add(*(fakes.request(f"batch-{i}", steps=1000, priority="batch") for i in range(5)))
    engine.until(lambda: len(engine.runner.steps) > 20)
    start = engine.runner.now
    engine.add(*(fakes.request(f"now-{i}", steps=50, submitted=start) for i in range(4)))
    engine.until(lambda: len(engine.of(RequestDone)) == 4)
    own = COST.request_seconds(fakes.request("now", steps=50))
    forecast = Forecast(ahead=3 * own, own=own, shared=[1000.0])
    assert 1.05 * 4 * own < engine.runner.now - start < 1.02 * forecast.total


@pytest.mark.parametrize(
    ("left", "wait"),
    [(22, 0), (21, 1), (11, 11), (10.5, 109.5), (9, math.inf)],
    ids=["reached", "behind interactive", "only behind interactive", "behind batch", "unreachable"],
)
def test_the_wait_for_a_deadline(left: float, wait: float) -> None:
    forecast = Forecast(ahead=10, own=10, shared=[100])
    assert forecast.wait_seconds(left) == pytest.approx(wait)


# Several devices.


async def test_a_reservation_counts_where_it_would_be_dispatched() -> None:
    engine = client(4)
    for index in range(3):
        engine.reserve(request(str(index), seconds=8))
    assert sorted(forecast.ahead for forecast in engine.forecast(request("next"))) == [0, 8, 8, 8]
    for index in range(3, 8):
        engine.reserve(request(str(index), seconds=8))
    assert engine.backlog_seconds("interactive") == 16


async def test_requests_go_to_the_device_with_the_least_work() -> None:
    engine = client(2)
    tasks = [await start(engine, request("long", seconds=100))]
    tasks += [await start(engine, request(str(index), seconds=10)) for index in range(3)]
    assert [list(worker.queue) for worker in engine._workers] == [["long"], ["0", "1", "2"]]  # type: ignore[attr-defined]
    assert engine.backlog_seconds("batch") == 30
    for task in tasks:
        task.cancel()


async def test_each_device_has_its_own_cost_model() -> None:
    """A request goes where it is done first, not where the backlog is smallest."""
    slow = SECOND.scaled(1, 10, 1)
    engine = client(2, slow, SECOND)
    tasks = [await start(engine, request(str(index), seconds=2)) for index in range(9)]
    lengths = [len(worker.queue) for worker in engine._workers]  # type: ignore[attr-defined]
    assert lengths == [0, 9]
    assert [forecast.own for forecast in engine.forecast(request("next", seconds=2))] == [20, 2]
    for task in tasks:
        task.cancel()


async def test_a_device_that_is_not_ready_gets_no_requests() -> None:
    engine = client(2)
    engine._workers[0].is_ready = False  # type: ignore[misc]
    engine.reserve(request("a", seconds=8))
    assert [forecast.ahead for forecast in engine.forecast(request("next"))] == [8]
    assert engine.backlog_seconds("batch") == 8


async def test_a_silent_device_gets_no_requests_unless_all_are_silent() -> None:
    engine = client(2)
    first, second = engine._workers
    first.is_silent = True  # type: ignore[misc]
    engine.reserve(request("a", seconds=8))
    assert [forecast.ahead for forecast in engine.forecast(request("next"))] == [8]
    second.is_silent = True  # type: ignore[misc]
    assert sorted(forecast.ahead for forecast in engine.forecast(request("next"))) == [0, 8]


async def test_while_no_device_is_ready_requests_count_on_all() -> None:
    engine = client(2)
    for worker in engine._workers:
        worker.is_ready = False  # type: ignore[misc]
    tasks = [await start(engine, request(str(index), seconds=8)) for index in range(4)]
    assert engine.backlog_seconds("interactive") == 16
    for task in tasks:
        task.cancel()


async def test_before_any_device_was_ready_nothing_is_predicted() -> None:
    engine = EngineClient(CONFIG, EngineOptions(("cpu", "cpu")))
    engine.reserve(request("a"))
    assert engine.backlog_seconds("batch") == 0
    assert [forecast.own for forecast in engine.forecast(request("next"))] == [0, 0]


async def test_waiting_requests_are_shared_with_a_device_that_becomes_ready_later() -> None:
    engine = client(2)
    first, second = engine._workers
    second.is_ready = False  # type: ignore[misc]
    tasks = [await start(engine, request(str(index), seconds=100)) for index in range(4)]
    work(engine, 1)
    assert [len(worker.queue) for worker in engine._workers] == [4, 0]  # type: ignore[attr-defined]
    second.is_ready = True  # type: ignore[misc]
    engine.on_availability(second)
    assert [len(worker.queue) for worker in engine._workers] == [2, 2]  # type: ignore[attr-defined]
    assert engine._in_flight["0"].worker is first, "it has begun"
    for task in tasks:
        task.cancel()


# When the first of a caller's requests is done.


async def test_the_first_to_finish_waits_for_all_requests_of_its_device() -> None:
    engine = client(2)
    tasks = [
        await start(engine, request(str(index), seconds=seconds)) for index, seconds in enumerate((9, 4, 2))
    ]
    assert engine.first_done_seconds(["2"]) == 6
    assert engine.first_done_seconds(["0", "2"]) == 6
    assert engine.first_done_seconds(["0"]) == 9
    assert engine.first_done_seconds([]) == engine.first_done_seconds(["unknown"]) == 0
    for task in tasks:
        task.cancel()


# Proven predictions.


async def test_predictions_are_proven_by_work_for_a_minute() -> None:
    engine = EngineClient(CONFIG, EngineOptions(("cpu",)))
    worker: WorkerSupervisor = engine._workers[0]
    worker._on_message(WorkerReady(SECOND, 0))
    (forecast,) = engine.forecast(request("a"))
    assert not forecast.is_proven
    worker._on_message(UnitDone("denoise", 1, 1.0, 0, 0, 0))
    (forecast,) = engine.forecast(request("a"))
    assert forecast.is_proven
    worker.last_unit_ended -= 61
    (forecast,) = engine.forecast(request("a"))
    assert not forecast.is_proven
