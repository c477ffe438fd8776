"""Tests of the fleet simulation, the sizing model, and the tables in the documents."""

import pytest

from benchmarks import fleet, sizing
from benchmarks.fleet import Fleet, Request
from benchmarks.gpus import H100
from tests.deploy import documents

POLICIES = [*fleet.POLICIES, fleet.QUEUE]


def _request(arrival: float, seconds: float) -> Request:
    return Request(arrival, seconds, seconds)


@pytest.mark.parametrize("module", documents.TABLES)
def test_the_tables_in_the_documents_are_current(module: str) -> None:
    assert documents.current(module) == documents.document(module).read_text(), (
        "python -m tests.deploy.documents"
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_or_rejected(policy: str) -> None:
    requests = fleet.traffic(hours=1, peak=0.5, seed=3)
    result = Fleet(policy, size=4).run(requests)
    assert len(result.latencies) + result.rejected == len(requests)
    assert result.gpu_hours == pytest.approx(4 * requests[-1].arrival / 3600)
    assert all(wait > -1e-6 for wait in result.waits)


def test_least_backlog_avoids_the_replica_with_the_long_request() -> None:
    """One replica has one long request, the other two short ones: the next goes to the second."""
    requests = [_request(0, 100), _request(1, 5), _request(2, 5), _request(3, 5)]
    by_count, by_backlog = (
        Fleet(policy, 2).run(requests) for policy in ("least requests", "least backlog seconds")
    )
    assert max(by_backlog.waits) < 15 < max(by_count.waits)


def test_round_robin_puts_a_request_behind_a_long_one() -> None:
    requests = [_request(0, 100), _request(1, 5), _request(2, 5)]
    assert max(Fleet("round robin", 2).run(requests).waits) > 90
    assert max(Fleet(fleet.QUEUE, 2).run(requests).waits) < 5


def test_a_request_beyond_the_backlog_limit_is_rejected() -> None:
    requests = [_request(0, 100), _request(1, 30), _request(2, 10)]
    result = Fleet("round robin", 1).run(requests)
    assert (len(result.latencies), result.rejected) == (2, 1)


@pytest.mark.parametrize("name", fleet.SIGNALS)
def test_a_fleet_grows_and_shrinks_with_its_load(name: str) -> None:
    signal, targets = fleet.SIGNALS[name]
    busy = [_request(second, 10.0) for second in range(3600)]  # keeps ten devices busy
    idle = [_request(second, 0.1) for second in range(3600, 7200, 60)]
    hours = Fleet("least backlog seconds", 1, signal, targets[-1]).run(busy + idle).gpu_hours
    assert 7 < hours < 45


@pytest.mark.parametrize(
    ("side", "step", "image"), [(512, 0.074, 0.94), (1024, 0.284, 3.6), (2048, 1.492, 18.3)]
)
def test_predictions_match_the_measurements_on_an_h100(
    side: int, step: float, image: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the step at 1024x1024 is calibrated. Measured with prompts of 100 tokens: docs/operations.md."""
    monkeypatch.setattr(sizing, "PROMPT_TOKENS", 100)
    cost = sizing.predicted_cost(H100)
    tokens = cost.image_tokens(side, side)
    assert cost.step_seconds(tokens, [100], 1) == pytest.approx(step, rel=0.05)
    assert sizing.image_seconds(cost, "V4_TURBO_12", side, side) == pytest.approx(image, rel=0.05)


def test_the_counted_weights_meet_the_published_files() -> None:
    assert pytest.approx(9.3e9, rel=0.02) == sizing.DIT_PARAMETERS
    for layout, published in {"bf16": 53e9, "fp8": 27e9, "nf4": 15e9}.items():
        assert sizing.weight_bytes(layout) == pytest.approx(published, rel=0.05)
