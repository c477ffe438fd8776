"""Correction of the cost model by observed work."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import CostCorrected, UnitKind, UnitStarted
from engine.worker.calibration import MAX_FACTOR, WINDOW, Calibration
from tests.engine.fakes import COST, Engine, request

KINDS: tuple[UnitKind, ...] = get_args(UnitKind)
# Predicted seconds of one unit of each kind.
UNITS: dict[UnitKind, float] = {
    "encode": COST.encode.seconds([10]),
    "encode_image": COST.encode_image.seconds([16]),
    "denoise": COST.step_seconds(16, [10], 1),
    "decode": COST.decode.seconds([16]),
}


def predicted(calibration: Calibration, kind: UnitKind) -> float:
    cost = calibration.cost
    match kind:
        case "encode":
            return cost.encode.seconds([10])
        case "encode_image":
            return cost.encode_image.seconds([16])
        case "denoise":
            return cost.step_seconds(16, [10], 1)
        case "decode":
            return cost.decode.seconds([16])


def observe(calibration: Calibration, kind: UnitKind, *seconds: float) -> None:
    for each in seconds:
        calibration.observe(kind, predicted(calibration, kind), each)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_each_kind_of_work_is_corrected_separately(kind: UnitKind, factor: float) -> None:
    calibration = Calibration(COST)
    observe(calibration, kind, *[factor * UNITS[kind]] * WINDOW)
    for _ in range(3 * WINDOW):
        observe(calibration, kind, factor * UNITS[kind])
        for each in KINDS:
            expected = UNITS[each] * (factor if each == kind else 1)
            assert predicted(calibration, each) == pytest.approx(expected)


def test_a_correction_is_reverted_when_the_device_recovers() -> None:
    calibration = Calibration(COST)
    observe(calibration, "denoise", *[8 * UNITS["denoise"]] * WINDOW, *[UNITS["denoise"]] * WINDOW)
    assert predicted(calibration, "denoise") == pytest.approx(UNITS["denoise"])


def test_outliers_have_no_effect() -> None:
    calibration = Calibration(COST)
    for _ in range(10):
        observe(calibration, "denoise", *[1000 * UNITS["denoise"]] * (WINDOW // 2))
        observe(calibration, "denoise", *[UNITS["denoise"]] * WINDOW)
    observe(calibration, "denoise", *[0.0] * (WINDOW // 2))
    assert calibration.cost == COST


def test_noise_does_not_change_the_cost_model() -> None:
    calibration = Calibration(COST)
    assert not any(
        calibration.observe("decode", UNITS["decode"], UNITS["decode"] * noise)
        for noise in (0.97, 1.03, 1.02, 0.99, 1.01) * 10
    )


def test_work_that_is_predicted_to_be_free_is_ignored() -> None:
    calibration = Calibration(COST)
    assert not any(calibration.observe("encode", 0.0, 1.0) for _ in range(3 * WINDOW))


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.floats(0, 1e6)), max_size=60))
def test_corrections_are_limited(observed: list[tuple[UnitKind, float]]) -> None:
    calibration = Calibration(COST)
    for kind, seconds in observed:
        observe(calibration, kind, seconds)
        factor = predicted(calibration, kind) / UNITS[kind]
        assert 0.999 / MAX_FACTOR <= factor <= 1.001 * MAX_FACTOR


# In the core.


@pytest.mark.parametrize("factor", [8.0, 0.125])
def test_the_core_corrects_a_wrong_warm_up(factor: float) -> None:
    """In the scheduler, in the predictions that the watchdog uses, and in the client."""
    engine = Engine(cost=COST.scaled(factor, factor, factor))
    for index in range(WINDOW):
        engine.add(request(str(index)))
        engine.run()
    right = COST.request_seconds(request("next"))
    assert engine.scheduler.cost.request_seconds(request("next")) == pytest.approx(right, rel=0.1)
    assert engine.of(CostCorrected)[-1].cost_model == engine.scheduler.cost
    last_step = [unit for unit in engine.of(UnitStarted) if unit.kind == "denoise"][-1]
    assert last_step.expected_seconds == pytest.approx(UNITS["denoise"], rel=0.1)


def test_slices_of_one_prompt_or_image_are_one_observation() -> None:
    """Steps of other requests run between the slices."""
    engine = Engine()
    engine.add(request("running", steps=2000, images=2))
    engine.until(lambda: engine.runner.steps)
    for index in range(2 * WINDOW):
        engine.add(request(str(index), steps=1, prompt_tokens=100))
    engine.run()
    assert not engine.of(CostCorrected)


def test_cached_prompts_are_no_observations() -> None:
    engine = Engine()
    engine.runner.cached = {"again"}
    for index in range(3 * WINDOW):
        engine.add(request(f"again:{index}"))
        engine.run()
    assert engine.runner.cache_hits == 3 * WINDOW
    assert not engine.of(CostCorrected)


def test_a_pause_has_no_effect() -> None:
    engine = Engine()
    pauses = [5.0] * (WINDOW // 2)

    def before_step(_: object) -> None:
        engine.runner.now += pauses.pop() if pauses else 0.0

    engine.runner.before_step = before_step
    engine.add(request("paused", steps=30))
    engine.run()
    assert not pauses
    assert not engine.of(CostCorrected)


def test_steps_are_measured_correctly_on_an_asynchronous_device() -> None:
    """Each step returns when the previous one, of another resolution, is done."""
    engine = Engine()
    pending = [0.0]

    def before_step(samples: object) -> None:
        own = engine.runner.now - started[0]
        engine.runner.now = started[0] + pending.pop()
        pending.append(own)

    started = [0.0]
    take = engine.runner.denoise_step

    def denoise_step(samples: list) -> None:  # type: ignore[type-arg]
        started[0] = engine.runner.now
        take(samples)

    engine.runner.denoise_step = denoise_step  # type: ignore[method-assign]
    engine.runner.before_step = before_step
    engine.add(request("small", steps=100), request("larger", size=(96, 64), steps=100))
    engine.run()
    assert not engine.of(CostCorrected)
