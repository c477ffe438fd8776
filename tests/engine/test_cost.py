"""The cost model, and its fit to the measurements of the warm-up."""

from dataclasses import replace
from typing import Any, cast

import pytest

from engine.cost import LinearCost
from engine.request import AdapterUse, SamplingParams
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.units import Denoise
from engine.worker.warmup import Point, fit
from tests.engine.fakes import COST, request


def step(images: int) -> float:
    """Seconds of a guided step of images of 16 tokens with prompts of 10."""
    return COST.step_seconds(16, [10] * images, images)


def test_a_step_is_a_pass_over_all_tokens_and_one_over_guided_images() -> None:
    assert COST.step_seconds(16, [10, 20], 1) == pytest.approx(0.002 + 0.0001 * 62 + 0.002 + 0.0001 * 16)
    assert COST.step_seconds(16, [10], 0) == pytest.approx(0.002 + 0.0001 * 26)


@pytest.mark.parametrize("images", [1, 2, 8])
def test_a_request_is_one_encode_and_steps_of_all_images_and_their_decodes(images: int) -> None:
    seconds = COST.request_seconds(request("one", steps=3, images=images))
    assert seconds == pytest.approx(0.010 + 3 * step(images) + images * 0.016)


def test_images_beyond_the_batch_limits_run_after_the_others() -> None:
    """The limits are a number of images, of tokens, and what the fixed cost allows: 14 images of 64 x 64."""
    steps = lambda *batches: 0.010 + sum(3 * step(size) + size * 0.016 for size in batches)  # noqa: E731
    wanted = request("many", steps=3, images=20)
    assert COST.request_seconds(wanted) == pytest.approx(steps(8, 8, 4))
    assert replace(COST, max_batch_tokens=60).request_seconds(wanted) == pytest.approx(steps(*[2] * 10))
    assert replace(COST, max_batch_size=64).request_seconds(wanted) == pytest.approx(steps(14, 6))


def test_images_are_decoded_in_batches() -> None:
    """At a token budget of 90, in which the fixed cost is a tenth: 5 images of 64 x 64."""
    cost = replace(COST, decode=LinearCost(0.010, 0.001))
    for images, decodes in ((1, 1), (5, 1), (6, 2), (8, 2), (10, 3), (13, 3)):
        wanted = request("a", images=images)
        assert cost.request_seconds(wanted) == pytest.approx(COST.request_seconds(wanted) + decodes * 0.010)


def test_source_images_have_the_limit_of_decodes() -> None:
    cost = replace(COST, encode_image=LinearCost(1.0, 0.001), max_batch_tokens=500, max_decode_tokens=50)
    assert cost.encode_image_tokens == 50
    assert replace(cost, max_decode_tokens=5000).encode_image_tokens == 500


def test_the_cost_has_a_quadratic_part() -> None:
    cost = LinearCost(base=1.0, per_unit=0.1, per_square=0.01)
    assert cost.seconds([10, 20]) == pytest.approx(1 + 3 + 5)


def test_at_the_token_budget_the_fixed_cost_is_a_twentieth() -> None:
    cost = replace(COST, pass_=LinearCost(0.002, 0.0001, 1e-8))
    tokens = cost.step_tokens(256)
    step = cost.pass_.base + tokens * (0.0001 + 1e-8 * 256)
    assert cost.pass_.base / step == pytest.approx(1 / 20)


def test_at_the_token_budget_of_encodes_and_decodes_the_fixed_cost_is_a_tenth() -> None:
    cost = replace(COST, encode=LinearCost(0.010, 0.001), decode=LinearCost(0.020, 0.001))
    assert (cost.encode_tokens, cost.decode_tokens) == pytest.approx((90, 180))
    assert (COST.encode_tokens, COST.decode_tokens) == (0, 0), "no fixed cost"
    assert replace(cost, max_batch_tokens=100).decode_tokens == 100


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
    """Finished images and an encoded prompt cost nothing."""
    decode = COST.decode.seconds([16])
    wanted = request("a", steps=4, images=3)
    assert COST.request_seconds(wanted, {2: 1}) == pytest.approx(3 * step(3) + step(2) + 3 * decode)
    assert COST.request_seconds(wanted, {0: 4, 1: 2, 2: 3}) == pytest.approx(step(2) + step(1) + 3 * decode)
    again = request("a", steps=4, images=3, skip=frozenset({0}))
    assert COST.request_seconds(again, {0: 4, 1: 2}) == pytest.approx(2 * step(2) + 2 * step(1) + 2 * decode)
    assert COST.request_seconds(again) == pytest.approx(0.010 + 4 * step(2) + 2 * decode)


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
    assert cost.step_tokens(256) == pytest.approx(COST.step_tokens(256)), "a ratio"


def test_adapters_are_counted_in_the_steps_in_which_they_are_applied() -> None:
    cost = replace(COST, adapter=LinearCost(base=0.01, per_unit=0.001))
    uses = (AdapterUse("a", "", "a", 1.0, end_step=3), AdapterUse("b", "", "b", 1.0, first_step=2))
    adapted = request("adapted", images=2, adapters=uses)  # 4 steps of 16 image and 10 prompt tokens
    plain = cost.request_seconds(replace(adapted, adapters=()))
    each = 0.01 + 0.001 * 26
    assert cost.request_seconds(adapted) - plain == pytest.approx(2 * 5 * each)
    left = {0: 3, 1: 1}
    plain = cost.request_seconds(replace(adapted, adapters=()), left)
    assert cost.request_seconds(adapted, left) - plain == pytest.approx((1 + 4) * each)


def test_a_step_counts_the_adapters_of_each_sample() -> None:
    cost = replace(COST, adapter=LinearCost(base=0.01, per_unit=0.001))
    uses = (AdapterUse("a", "", "a", 1.0, end_step=1), AdapterUse("b", "", "b", 1.0))
    states = [RequestState(request("adapted", adapters=uses)), RequestState(request("plain"))]
    samples = [SampleState(state, 0, latents=cast(Any, None)) for state in states]
    each = 0.01 + 0.001 * 26
    for step, used in enumerate((2, 1)):
        samples[0].step_index = step
        added = Denoise.predict(cost, samples).seconds - Denoise.predict(COST, samples).seconds
        assert added == pytest.approx(used * each)


def test_a_correction_scales_the_cost_of_adapters() -> None:
    cost = replace(COST, adapter=LinearCost(base=0.01, per_unit=0.001))
    assert cost.scaled(encode=1, denoise=3, decode=1).adapter == LinearCost(0.03, 0.003)
