"""The cost model, and its fit to the measurements of the warm-up."""

from dataclasses import replace

import pytest

from engine.cost import CostModel, LinearCost
from engine.request import SamplingParams
from engine.worker.warmup import Point, fit
from tests.engine.fakes import COST, request


def test_a_step_is_a_pass_over_all_tokens_and_one_over_guided_images() -> None:
    assert COST.step_seconds(16, [10, 20], 1) == pytest.approx(0.002 + 0.0001 * 62 + 0.002 + 0.0001 * 16)
    assert COST.step_seconds(16, [10], 0) == pytest.approx(0.002 + 0.0001 * 26)


def test_a_request_is_one_encode_and_steps_and_a_decode_per_image() -> None:
    one = COST.request_seconds(request("one", steps=3, images=1))
    assert one == pytest.approx(0.010 + 3 * COST.step_seconds(16, [10], 1) + 0.016)
    assert COST.request_seconds(request("two", steps=3, images=2)) == pytest.approx(2 * one - 0.010)


def test_the_cost_has_a_quadratic_part() -> None:
    cost = LinearCost(base=1.0, per_unit=0.1, per_square=0.01)
    assert cost.seconds([10, 20]) == pytest.approx(1 + 3 + 5)


def test_at_the_token_budget_the_fixed_cost_is_a_twentieth() -> None:
    cost = CostModel(LinearCost(0.002, 0.0001, 1e-8), LinearCost(0, 0), LinearCost(0, 0), 16)
    tokens = cost.batch_tokens(256)
    step = cost.pass_.base + tokens * (0.0001 + 1e-8 * 256)
    assert cost.pass_.base / step == pytest.approx(1 / 20)


@pytest.mark.parametrize(
    "cost",
    [
        LinearCost(0.004, 4e-5, 1e-8),
        LinearCost(0.004, 4e-5),
        LinearCost(0.0, 4e-5),
        LinearCost(0.0, 4e-5, 1e-8),
        LinearCost(0.004, 0.0),
    ],
)
def test_the_fit_finds_the_coefficients(cost: LinearCost) -> None:
    rows = [[32, 16], [128, 64], [140, 70], [600, 300], [2400, 1200]]
    fitted = fit([(1, row, cost.seconds(row)) for row in rows], squares=True)
    for row in rows:
        assert fitted.seconds(row) == pytest.approx(cost.seconds(row), rel=1e-3)


def test_the_fit_of_noise_has_no_negative_coefficient() -> None:
    points: list[Point] = [(1, [16], 0.010), (1, [64], 0.002), (1, [256], 0.001), (1, [1024], 0.3)]
    fitted = fit(points, squares=True)
    assert min(fitted.base, fitted.per_unit, fitted.per_square) >= 0
    assert fitted.seconds([100]) > 0


def test_the_fit_of_one_point_is_proportional() -> None:
    assert fit([(1, [50], 0.5)], squares=False).seconds([100]) == pytest.approx(1.0)


def test_the_fit_minimises_relative_errors() -> None:
    """An error of a tenth on the largest does not hide the fixed cost that the smallest show."""
    cost = LinearCost(0.004, 4e-5)
    rows = [[32], [64], [256], [16_384]]
    points: list[Point] = [(1, row, cost.seconds(row)) for row in rows]
    points[-1] = (1, rows[-1], 1.1 * cost.seconds(rows[-1]))
    assert fit(points, squares=True).base == pytest.approx(0.004, rel=0.15)


def test_the_rest_of_a_request() -> None:
    """Images may run together. Finished images and an encoded prompt cost nothing."""
    step, decode = COST.step_seconds(16, [10], 1), COST.decode.seconds([16])
    wanted = request("a", steps=4, images=3)
    assert COST.request_seconds(wanted, {2: 1}) == pytest.approx(11 * step + 3 * decode)
    assert COST.request_seconds(wanted, {0: 4, 1: 2, 2: 3}) == pytest.approx(3 * step + 3 * decode)
    again = request("a", steps=4, images=3, skip=frozenset({0}))
    assert COST.request_seconds(again, {0: 4, 1: 2}) == pytest.approx(6 * step + 2 * decode)
    assert COST.request_seconds(again) == pytest.approx(0.010 + 8 * step + 2 * decode)


def test_a_step_without_guidance_is_one_pass() -> None:
    schedule = SamplingParams((1.0, 2.0, 2.0), mu=0.0, std=1.5)
    wanted = replace(request("a"), sampling=schedule)
    one, both = COST.step_seconds(16, [10], 0), COST.step_seconds(16, [10], 1)
    assert COST.request_seconds(wanted) == pytest.approx(0.010 + one + 2 * both + 0.016)
    assert COST.request_seconds(wanted, {0: 1}) == pytest.approx(2 * both + 0.016)


def test_each_kind_of_work_is_scaled_separately() -> None:
    cost = COST.scaled(encode=2, denoise=3, decode=5)
    assert cost.encode.seconds([10]) == pytest.approx(2 * 0.010)
    assert cost.step_seconds(16, [10], 1) == pytest.approx(3 * COST.step_seconds(16, [10], 1))
    assert cost.decode.seconds([16]) == pytest.approx(5 * 0.016)
    assert cost.batch_tokens(256) == pytest.approx(COST.batch_tokens(256)), "a ratio"
