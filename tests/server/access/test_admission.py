"""Admission by predicted seconds, over the engine client and stub workers."""

import asyncio
import itertools
import time
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cost import CostModel
from engine.request import EngineRequest, Priority, SamplingParams
from server.access.admission import Admission, AdmissionSlot
from server.access.api_keys import Caller
from server.schemas.errors import ApiError
from tests.engine.stub_worker import SECOND, StubWorker, client, work

LIMIT, BATCH_SHARE = 20.0, 0.5
LONGEST = 3 * 12.0  # of the requests drawn below
NAMES = map(str, itertools.count())

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request(seconds: int, priority: Priority = "interactive", images: int = 1) -> EngineRequest:
    """Each image takes `seconds`."""
    sampling = SamplingParams((1.0,) * seconds, 0, 1)
    seeds = tuple(range(images))
    return EngineRequest(next(NAMES), (1,), 64, 64, seeds, sampling, priority=priority)


class Server:
    """Admission and an engine; drives requests as a generation does."""

    def __init__(self, devices: int = 1, *costs: CostModel) -> None:
        self.engine = client(devices, *costs)
        self.admission = Admission(self.engine, LIMIT, BATCH_SHARE)
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def workers(self) -> list[StubWorker]:
        return self.engine._workers  # type: ignore[return-value]

    def admit(
        self,
        wanted: EngineRequest,
        caller: Caller = Caller(),  # noqa: B008
        left: float | None = None,
    ) -> AdmissionSlot:
        """`left` is the seconds until its deadline."""
        deadline = None if left is None else time.monotonic() + left
        return self.admission.admit(wanted, caller, deadline)

    def refusal(
        self,
        wanted: EngineRequest,
        caller: Caller = Caller(),  # noqa: B008
        left: float | None = None,
    ) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.admit(wanted, caller, left)
        assert caught.value.status == 429
        return caught.value

    async def start(self, slot: AdmissionSlot) -> None:
        """Submit it to the engine."""
        self.tasks.append(asyncio.create_task(self._generate(slot)))
        await settle()

    async def run(self, wanted: EngineRequest, caller: Caller = Caller()) -> None:  # noqa: B008
        await self.start(self.admit(wanted, caller))

    async def work(self, seconds: int) -> None:
        work(self.engine, seconds)
        await settle()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for slot in list(self.admission._slots):
            slot.release()
        assert self.engine.backlog_seconds("batch") == 0

    async def _generate(self, slot: AdmissionSlot) -> None:
        try:
            async with aclosing(self.engine.generate(slot.request)) as outputs:
                async for _ in outputs:
                    pass
        finally:
            slot.release()


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def told(error: ApiError) -> tuple[str, int]:
    return error.code, int(error.headers["Retry-After"])


# The bound.


async def test_admitted_requests_count_before_they_reach_the_engine() -> None:
    """A burst during moderation must not be admitted as a whole."""
    server = Server()
    server.admit(request(15))
    assert told(server.refusal(request(8))) == ("queue_full", 3)
    server.admit(request(5))
    assert server.engine.backlog_seconds("interactive") == 20


async def test_a_request_beyond_the_bound_passes_where_nothing_waits() -> None:
    server = Server()
    server.admit(request(70))
    assert told(server.refusal(request(1))) == ("queue_full", 51)


async def test_batch_fills_only_its_share() -> None:
    server = Server()
    server.admit(request(8, "batch"))
    assert told(server.refusal(request(3, "batch"))) == ("queue_full", 1)
    server.admit(request(20))


@pytest.mark.parametrize("devices", [1, 2, 4])
async def test_batch_work_lets_no_more_interactive_work_in_with_more_devices(devices: int) -> None:
    server = Server(devices)
    for _ in range(devices):
        await server.run(request(10, "batch"))
    for _ in range(5 * devices):
        await server.run(request(4))
    assert [worker.seconds("interactive") for worker in server.workers] == [LIMIT] * devices
    assert told(server.refusal(request(4))) == ("queue_full", 4)
    await server.close()


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("is_started", [True, False])
async def test_each_device_adds_its_backlog(devices: int, is_started: bool) -> None:
    server = Server(devices)
    for _ in range(5 * devices):
        slot = server.admit(request(4))
        if is_started:
            await server.start(slot)
    assert told(server.refusal(request(4))) == ("queue_full", 4)
    await server.close()


async def test_the_second_step_of_many_images_frees_a_second() -> None:
    server = Server()
    await server.run(request(2, images=10))
    await server.work(1)
    assert told(server.refusal(request(2))) == ("queue_full", 1)
    await server.work(1)
    server.admit(request(2))
    await server.close()


Operation = tuple[str, Any]
REQUESTS = st.tuples(st.integers(1, 12), st.sampled_from(["interactive", "batch"]), st.integers(1, 3))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), REQUESTS),
        st.tuples(st.just("run"), REQUESTS),
        st.tuples(st.just("start"), st.integers(0, 100)),
        st.tuples(st.just("work"), st.integers(1, 8)),
    ),
    max_size=50,
)


async def play(server: Server, operations: list[Operation]) -> None:
    """Admit, start in any order and work; ignore refusals. Each device stays within its bounds."""
    reserved: list[AdmissionSlot] = []
    for name, value in operations:
        try:
            if name in ("admit", "run"):
                reserved.append(server.admit(request(*value)))
        except ApiError:
            continue
        if name == "work":
            await server.work(value)
        elif reserved and name != "admit":
            await server.start(reserved.pop(value % len(reserved) if name == "start" else -1))
        for worker in server.workers:
            assert worker.seconds("interactive") <= LIMIT + LONGEST
            assert worker.seconds("batch") <= LIMIT * BATCH_SHARE + LONGEST
    for slot in reserved:
        await server.start(slot)


@given(st.sampled_from([1, 2, 4]), OPERATIONS)
@settings(deadline=None, max_examples=60)
def test_no_device_has_more_than_the_limit_and_one_request(devices: int, operations: list[Operation]) -> None:
    async def scenario() -> None:
        server = Server(devices)
        await play(server, operations)
        await server.close()

    run(scenario())


@given(st.sampled_from([1, 2, 4]), OPERATIONS, REQUESTS, st.one_of(st.none(), st.integers(1, 60)))
@settings(deadline=None, max_examples=60)
def test_retry_after_is_when_the_same_request_passes(
    devices: int, operations: list[Operation], drawn: Any, left: int | None
) -> None:
    async def scenario() -> None:
        server = Server(devices)
        await play(server, operations)
        try:
            server.admit(request(*drawn), left=left)
        except ApiError as error:
            if error.headers.get("x-should-retry") != "false":
                await server.work(int(error.headers["Retry-After"]))
                server.admit(request(*drawn), left=left)
        await server.close()

    run(scenario())


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


# Deadlines.


async def test_batch_work_does_not_delay_interactive() -> None:
    server = Server()
    await server.run(request(10, "batch"))
    server.admit(request(5), left=6)
    assert server.refusal(request(2, "batch"), left=6).code == "deadline_unreachable"


@pytest.mark.parametrize("devices", [2, 4])
async def test_a_deadline_is_judged_on_the_device_that_the_request_would_get(devices: int) -> None:
    server = Server(devices)
    for _ in range(devices):
        server.admit(request(10))
    refused = server.refusal(request(2), left=6)
    assert told(refused) in {("deadline_unreachable", 6), ("deadline_unreachable", 7)}
    server.admit(request(2), left=13)


async def test_retry_after_is_that_of_the_deadline_and_of_the_bound() -> None:
    server = Server()
    server.admit(request(20))
    assert told(server.refusal(request(10), left=29)) == ("deadline_unreachable", 10)


async def test_a_request_longer_than_its_deadline_is_not_to_be_tried_again() -> None:
    server = Server()
    refused = server.refusal(request(10), left=9)
    assert told(refused) == ("deadline_unreachable", 60)
    assert refused.headers["x-should-retry"] == "false"


async def test_a_slow_device_does_not_make_a_request_hopeless() -> None:
    server = Server(2, SECOND.scaled(1, 10, 1), SECOND)
    for _ in range(4):
        await server.run(request(2))
    refused = server.refusal(request(2), left=5)
    assert "x-should-retry" not in refused.headers
    assert told(refused) in {("deadline_unreachable", 5), ("deadline_unreachable", 6)}
    await server.close()


async def test_a_prediction_that_no_work_has_proven_refuses_nothing_alone() -> None:
    """A warm-up on a busy machine must not refuse valid requests forever."""
    server = Server(1, SECOND.scaled(1, 8, 1))
    server.workers[0].last_unit_ended = -1e9
    slot = server.admit(request(4), left=10)
    assert server.refusal(request(4), left=10).code == "deadline_unreachable", "one is enough to see"
    slot.release()


async def test_a_changed_prompt_keeps_its_place_and_its_deadline_is_checked_again() -> None:
    server = Server()
    for _ in range(3):
        slot = server.admit(request(6), left=19)
    longer = request(9)
    with pytest.raises(ApiError) as caught:
        slot.update(changed(slot, longer))
    assert caught.value.code == "deadline_unreachable"
    slot.update(changed(slot, request(5)))
    assert server.engine.backlog_seconds("interactive") == 17
    assert slot.request.sampling.num_inference_steps == 5


def changed(slot: AdmissionSlot, other: EngineRequest) -> EngineRequest:
    return replace(slot.request, sampling=other.sampling)


# A key's limit.


async def test_two_callers_do_not_share_a_limit() -> None:
    server = Server()
    one, other = Caller("one", max_concurrency=1), Caller("other", max_concurrency=1)
    slot = server.admit(request(4), one)
    server.admit(request(1), other)
    assert server.refusal(request(1), one).code == "concurrency_limit"
    slot.release()
    server.admit(request(1), one)


async def test_a_full_key_waits_for_its_own_request_behind_others() -> None:
    server = Server()
    caller = Caller("one", max_concurrency=1)
    await server.run(request(9))
    await server.run(request(2), caller)
    assert told(server.refusal(request(1), caller)) == ("concurrency_limit", 11)
    await server.work(11)
    server.admit(request(1), caller)
    await server.close()
