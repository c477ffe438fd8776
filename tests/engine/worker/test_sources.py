"""Requests with a source image, on a fake runner."""

from dataclasses import replace
from itertools import count

import pytest

from engine.cost import LinearCost
from engine.messages import (
    CostCorrected,
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    StepDone,
    UnitDone,
    UnitStarted,
)
from engine.request import AdapterUse, EngineRequest, SourceImage
from engine.worker.calibration import WINDOW
from tests.engine.fakes import COST, Engine, OutOfMemoryError, joined, request

# Encoding images has a fixed cost of 10 ms and takes 0.5 ms per token: batches have up to 180 tokens.
BATCHED = replace(COST, encode=LinearCost(0.010, 0.001), encode_image=LinearCost(0.010, 0.0005))


def edit(
    name: str,
    strength: float = 0.5,
    mask: bytes | None = None,
    size: tuple[int, int] = (64, 64),
    **fields: int,
) -> EngineRequest:
    return request(name, size, source=SourceImage(b"rgb", mask, strength, name), **fields)


def kinds(tested: Engine, request_id: str) -> list[str]:
    """Kinds of the units of work of a request, without repetitions in a row."""
    units = [unit.kind for unit in tested.of(UnitStarted) if request_id in unit.request_ids]
    return [kind for index, kind in enumerate(units) if units[index - 1 : index] != [kind]]


def test_the_source_is_encoded_between_the_prompt_and_the_first_step() -> None:
    tested = Engine()
    tested.add(edit("one", images=3))
    tested.run()
    assert kinds(tested, "one") == ["encode", "encode_image", "denoise", "decode"]
    assert tested.runner.sources == [["one"]], "once for all images"
    assert tested.ids(ImageDone) == ["one"] * 3


def test_images_that_get_their_seats_later_do_not_encode_the_source_again() -> None:
    tested = Engine(max_running=1)
    tested.add(edit("one", images=3))
    tested.run()
    assert tested.runner.sources == [["one"]]
    assert tested.ids(ImageDone) == ["one"] * 3


@pytest.mark.parametrize(("mask", "encodes"), [(None, []), (b"mask", [["one"]])])
def test_at_strength_1_the_source_is_encoded_only_for_a_mask(
    mask: bytes | None, encodes: list[list[str]]
) -> None:
    tested = Engine()
    tested.add(edit("one", 1.0, mask))
    tested.run()
    assert tested.runner.sources == encodes
    assert len(tested.of(StepDone)) == 4


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 12), (0.7, 9), (0.5, 6), (0.01, 1), (0.0, 0)])
def test_steps_and_previews_are_of_the_steps_that_run(strength: float, steps: int) -> None:
    tested = Engine()
    tested.add(edit("one", strength, steps=12, num_previews=2))
    tested.run()
    done = tested.of(StepDone)
    assert [(each.step, each.num_steps) for each in done] == [(step, steps) for step in range(1, steps + 1)]
    at = [step for step, due in ((steps // 3, 0), (2 * steps // 3, 1)) if step > 0]
    messages = [each for each in tested.sent if isinstance(each, StepDone | PreviewReady)]
    shown = [messages[i - 1].step for i, each in enumerate(messages) if isinstance(each, PreviewReady)]  # type: ignore[union-attr]
    assert shown == (at or [1] * (steps == 1))
    assert tested.ids(RequestDone) == ["one"]


def test_a_sample_that_starts_late_joins_the_steps_of_others() -> None:
    tested = Engine()
    tested.add(edit("edit", 0.5), request("whole"))
    tested.run()
    assert ["edit", "whole"] in [sorted(batch) for batch in tested.runner.steps]
    assert sum("edit" in batch for batch in tested.runner.steps) == 2
    assert sum("whole" in batch for batch in tested.runner.steps) == 4


def test_waiting_sources_are_encoded_together() -> None:
    tested = Engine(cost=BATCHED, actual=BATCHED)
    tested.add(*(edit(name) for name in "abc"), request("d"))
    tested.run()
    assert tested.runner.sources == [["a", "b", "c"]]
    wide = Engine(cost=BATCHED, actual=BATCHED)
    wide.add(*(edit(name, size=(128, 128)) for name in "abcd"))
    wide.run()
    assert max(map(len, wide.runner.sources)) == 2, "the fixed cost is a tenth at 180 tokens"


@pytest.mark.parametrize("error", [ValueError("bad"), OutOfMemoryError("full")])
def test_only_the_request_whose_source_fails_fails(error: Exception) -> None:
    tested = Engine(cost=BATCHED, actual=BATCHED)

    def before(requests: list[EngineRequest]) -> None:
        if tested.runner.sources and any(each.request_id == "b" for each in requests):
            raise error

    tested.runner.before_encode = before  # type: ignore[assignment]
    tested.add(*(edit(name) for name in "abc"))
    tested.run()
    assert tested.ids(RequestFailed) == ["b"]
    assert sorted(tested.ids(RequestDone)) == ["a", "c"]


@pytest.mark.parametrize("units", range(1, 14))
def test_an_edit_can_be_aborted_and_promoted_in_any_phase(units: int) -> None:
    tested = Engine()
    tested.add(edit("gone", images=2), edit("kept", priority="batch"))  # type: ignore[arg-type]
    for _ in range(units):
        tested.step()
    tested.core.abort("gone")
    tested.core.promote("kept", "interactive")
    tested.run()
    assert "kept" in tested.ids(RequestDone)
    assert tested.scheduler.num_running == 0


def test_a_long_encode_of_a_source_does_not_hold_up_running_samples() -> None:
    """Between two steps of a queue's samples it takes a step at most, and one part of a millisecond."""
    slow = replace(COST, encode_image=LinearCost(0.0, 0.05))
    tested = Engine(cost=slow, actual=slow)
    tested.add(request("running", steps=200))
    tested.until(lambda: tested.runner.steps)
    tested.add(edit("edit"))
    while not joined(tested.runner.steps, "edit"):
        before, steps = tested.runner.now, len(tested.runner.steps)
        tested.until(lambda done=steps: len(tested.runner.steps) > done)
        assert tested.runner.now - before < 2.5 * slow.step_seconds(16, [10], 1)
    assert sum(unit.kind == "encode_image" for unit in tested.of(UnitDone)) > 10


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("mask", [None, b"mask"])
def test_a_request_alone_takes_the_predicted_seconds(
    strength: float, images: int, mask: bytes | None
) -> None:
    tested = Engine()
    wanted = edit("alone", strength, mask, images=images, steps=10)
    tested.add(wanted)
    tested.run()
    assert tested.runner.now == pytest.approx(COST.request_seconds(wanted))
    (done,) = tested.of(RequestDone)
    source = 0.008 if strength < 1 or mask else 0.0
    assert done.times.encode == pytest.approx(0.010 + source)


def test_the_rest_of_an_edit_is_predicted_from_the_steps_that_run() -> None:
    wanted = edit("one", 0.5, steps=10)
    step, decode = COST.step_seconds(16, [10], 1), COST.decode.seconds([16])
    assert COST.request_seconds(wanted, {0: 2}) == pytest.approx(3 * step + decode)
    assert COST.request_seconds(edit("one", 0.0), {}) == pytest.approx(0.010 + 0.008 + decode)


def test_adapters_cost_in_the_steps_that_run() -> None:
    """Steps of an adapter are those of the schedule, also for an image that starts late."""
    cost = replace(COST, adapter=LinearCost(0.5, 0.0))
    plain = COST.request_seconds(edit("one", 0.5, steps=10))
    for first, end, steps in ((0, 1_000, 5), (0, 5, 0), (6, 8, 2)):
        wanted = replace(edit("one", 0.5, steps=10), adapters=(AdapterUse("a", "a", "a", 1.0, first, end),))
        assert cost.request_seconds(wanted) == pytest.approx(plain + steps * 0.5)
    assert cost.request_seconds(wanted, {0: 2}) == pytest.approx(COST.request_seconds(wanted, {0: 2}) + 0.5)


def test_a_wrong_prediction_of_encoding_images_is_corrected() -> None:
    tested = Engine(cost=COST.scaled(1, 1, 1, encode_image=8), actual=COST)
    ids = count()
    for _ in range(WINDOW):
        tested.add(edit(str(next(ids))))
        tested.run()
    cost = tested.scheduler.cost
    assert tested.of(CostCorrected)
    assert cost.encode_image.seconds([16]) == pytest.approx(COST.encode_image.seconds([16]), rel=0.15)
    assert cost.encode.seconds([10]) == pytest.approx(COST.encode.seconds([10]))
