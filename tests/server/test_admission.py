"""Admission by predicted seconds, over a fake engine in this process."""

import time
from collections.abc import Callable

import pytest

from engine.messages import EngineRequest, Priority, SamplingParams
from server.admission import Admission, Ticket
from server.auth import Caller
from server.errors import ApiError


class Engine:
    """As much of one as admission looks at: one second a step."""

    backlog = 0.0

    def predict_seconds(self, request: EngineRequest) -> float:
        return float(request.sampling.num_inference_steps)

    def backlog_seconds(self) -> float:
        return self.backlog


def request(seconds: int, priority: Priority = "interactive", left: float | None = None) -> EngineRequest:
    deadline = None if left is None else time.monotonic() + left
    sampling = SamplingParams((7.0,) * seconds, 0, 1)
    return EngineRequest("id", (1,), 64, 64, (1,), sampling, deadline=deadline, priority=priority)


def refusal(admit: Callable[[], Ticket]) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        admit()
    return caught.value.code, caught.value.headers.get("Retry-After")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def admission(engine: Engine) -> Admission:
    return Admission(engine, max_backlog_seconds=20, batch_share=0.5)  # type: ignore[arg-type]


def test_what_the_engine_has_not_seen_counts(admission: Admission) -> None:
    """A burst that arrives before the engine's first word must not all pass."""
    admission.admit(request(15), Caller())
    assert admission.backlog_seconds() == 15
    assert refusal(lambda: admission.admit(request(8), Caller())) == ("queue_full", "3")
    admission.admit(request(5), Caller())


def test_what_the_engine_has_is_not_counted_twice(admission: Admission, engine: Engine) -> None:
    ticket = admission.admit(request(15), Caller())
    ticket.begin()
    engine.backlog = 12
    assert admission.backlog_seconds() == 12
    admission.release(ticket)
    engine.backlog = 0
    assert admission.backlog_seconds() == 0


def test_batch_fills_only_its_share(admission: Admission) -> None:
    admission.admit(request(8, "batch"), Caller())
    assert refusal(lambda: admission.admit(request(3, "batch"), Caller())) == ("queue_full", "1")
    admission.admit(request(20), Caller())


def test_batch_work_does_not_delay_interactive(admission: Admission, engine: Engine) -> None:
    ticket = admission.admit(request(10, "batch"), Caller())
    ticket.begin()
    engine.backlog = 10
    admission.admit(request(5, left=6), Caller())
    assert (
        refusal(lambda: admission.admit(request(2, "batch", left=6), Caller()))[0] == "deadline_unreachable"
    )


def test_finished_steps_of_batch_work_are_not_subtracted_again(admission: Admission, engine: Engine) -> None:
    ticket = admission.admit(request(10, "batch"), Caller())
    ticket.begin()
    ticket.step(image_index=0, step=9, num_steps=10)
    engine.backlog = 1 + 18
    assert refusal(lambda: admission.admit(request(3), Caller())) == ("queue_full", "1")


def test_two_callers_do_not_share_a_limit(admission: Admission) -> None:
    one, other = Caller("one", max_concurrency=1), Caller("other", max_concurrency=1)
    ticket = admission.admit(request(4), one)
    admission.admit(request(1), other)
    assert refusal(lambda: admission.admit(request(1), one)) == ("concurrency_limit", "4")
    admission.release(ticket)
    admission.admit(request(1), one)
