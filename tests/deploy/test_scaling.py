"""The simulated fleet, the sizing it stands on, and the documents' tables."""

import pytest

from benchmarks import fleet, sizing
from benchmarks.fleet import Fleet, Request
from tests.deploy import documents

POLICIES = [*fleet.POLICIES, fleet.QUEUE]


def _request(arrival: float, seconds: float) -> Request:
    return Request(arrival, seconds, seconds)


@pytest.mark.parametrize("module", documents.TABLES)
def test_the_documents_show_what_the_command_prints(module: str) -> None:
    assert documents.current(module) == documents.document(module).read_text(), (
        "python -m tests.deploy.documents"
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_or_refused(policy: str) -> None:
    requests = fleet.traffic(hours=1, peak=0.5, seed=3)
    result = Fleet(policy, size=4).run(requests)
    assert len(result.latencies) + result.refused == len(requests)
    assert result.gpu_hours == pytest.approx(4 * requests[-1].arrival / 3600)
    assert all(wait > -1e-6 for wait in result.waits)


def test_backlog_sees_what_counting_does_not() -> None:
    """A long request on one replica, two short ones on the other: the next belongs to the other."""
    requests = [_request(0, 100), _request(1, 5), _request(2, 5), _request(3, 5)]
    counted, weighed = (
        Fleet(policy, 2).run(requests) for policy in ("least requests", "least backlog seconds")
    )
    assert max(weighed.waits) < 15 < max(counted.waits)


def test_round_robin_puts_a_request_behind_a_long_one() -> None:
    requests = [_request(0, 100), _request(1, 5), _request(2, 5)]
    assert max(Fleet("round robin", 2).run(requests).waits) > 90
    assert max(Fleet(fleet.QUEUE, 2).run(requests).waits) < 5


def test_what_would_wait_too_long_is_refused() -> None:
    requests = [_request(0, 100), _request(1, 30), _request(2, 10)]
    result = Fleet("round robin", 1).run(requests)
    assert (len(result.latencies), result.refused) == (2, 1)


@pytest.mark.parametrize("name", fleet.SIGNALS)
def test_a_fleet_grows_and_shrinks_with_its_load(name: str) -> None:
    signal, targets = fleet.SIGNALS[name]
    busy = [_request(second, 10.0) for second in range(3600)]  # ten devices' work
    idle = [_request(second, 0.1) for second in range(3600, 7200, 60)]
    hours = Fleet("least backlog seconds", 1, signal, targets[-1]).run(busy + idle).gpu_hours
    assert 7 < hours < 45


def test_the_prediction_meets_the_published_step() -> None:
    """435 ms a step and 20.98 s an image on an H100, which it is scaled by: within a tenth."""
    cost = sizing.predicted_cost(sizing.H100)
    assert cost.step_seconds(4096, [sizing.PROMPT_TOKENS], 1) == pytest.approx(0.435, rel=0.1)
    assert sizing.image_seconds(cost, "V4_QUALITY_48", 1024, 1024) == pytest.approx(20.98, rel=0.1)


def test_the_counted_weights_meet_the_published_files() -> None:
    assert pytest.approx(9.3e9, rel=0.02) == sizing.DIT_PARAMETERS
    for layout, published in {"bf16": 53e9, "fp8": 27e9, "nf4": 15e9}.items():
        assert sizing.weight_bytes(layout) == pytest.approx(published, rel=0.05)
