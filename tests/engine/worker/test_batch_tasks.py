"""Prompts that are encoded together and images that are decoded together, on a fake runner."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, cast

import pytest

from engine.cost import LinearCost
from engine.messages import CostCorrected, ImageDone, RequestDone, RequestFailed, UnitStarted
from engine.request import EngineRequest, Priority
from engine.runner.request_state import RequestState, SampleState
from engine.worker.calibration import WINDOW
from tests.engine.fakes import COST, Engine, OutOfMemoryError, request

# Encoding and decoding take 10 ms and 1 ms per token, so batches have up to 90 tokens.
BATCHED = replace(COST, encode=LinearCost(0.010, 0.001), decode=LinearCost(0.010, 0.001))
TINY = 8  # tokens of a prompt: the batch size, not the token budget, limits its batches


def engine(**options: int) -> Engine:
    return Engine(cost=BATCHED, actual=BATCHED, **options)  # type: ignore[arg-type]


def several(number: int, size: tuple[int, int] = (64, 64), **fields: object) -> list[EngineRequest]:
    fields = {"prompt_tokens": TINY, **fields}
    return [request(str(index), size, **fields) for index in range(number)]  # type: ignore[arg-type]


def names(number: int) -> list[str]:
    return [str(index) for index in range(number)]


# What runs together.


def test_waiting_prompts_are_encoded_together_and_their_images_decoded_together() -> None:
    tested = engine()
    tested.add(*several(5))
    tested.run()
    assert tested.runner.encodes == [names(5)]
    assert tested.runner.steps == [names(5)] * 4
    assert tested.runner.decodes == [names(5)]
    assert tested.ids(ImageDone) == names(5)
    assert [image.rgb.decode() for image in tested.of(ImageDone)] == names(5), "each its own"


def test_the_batch_size_limits_encodes_and_decodes() -> None:
    tested = engine(max_batch_size=2)
    tested.add(*several(5))
    tested.run()
    assert max(map(len, tested.runner.encodes)) == 2
    assert max(map(len, tested.runner.decodes)) == 2
    samples = [SampleState(RequestState(each), 0, latents=cast(Any, None)) for each in several(5)]
    assert tested.limits.fitting_decodes(samples) == 2


@pytest.mark.parametrize(("size", "together"), [((64, 64), 5), ((128, 64), 2), ((128, 128), 1)])
def test_the_fixed_cost_limits_a_decode(size: tuple[int, int], together: int) -> None:
    tested = engine()
    tested.add(*several(8, size))
    tested.run()
    assert max(map(len, tested.runner.decodes)) == together


@pytest.mark.parametrize(("tokens", "together"), [(10, 8), (30, 3), (91, 1)])
def test_the_fixed_cost_limits_an_encode(tokens: int, together: int) -> None:
    tested = engine()
    tested.add(*several(8, prompt_tokens=tokens))
    tested.run()
    assert max(map(len, tested.runner.encodes)) == together


def test_sizes_are_never_decoded_together() -> None:
    tested = engine()
    sizes = [(64, 64), (96, 64), (64, 96)]
    tested.add(*(request(f"{i}-{size}", size, prompt_tokens=TINY) for i in range(3) for size in sizes))
    tested.run()
    assert all(len({name[2:] for name in batch}) == 1 for batch in tested.runner.decodes)
    assert max(map(len, tested.runner.decodes)) == 3
    assert len(tested.of(RequestDone)) == 9


def test_a_suspect_never_shares_an_encode_or_decode() -> None:
    tested = engine()
    tested.add(request("suspect", images=3, is_suspect=True, prompt_tokens=TINY), *several(3))
    tested.run()
    for batch in (*tested.runner.encodes, *tested.runner.decodes):
        assert batch == ["suspect"] or "suspect" not in batch
    assert names(3) in tested.runner.decodes


def test_a_cached_prompt_does_not_wait_for_others() -> None:
    tested = engine()
    tested.runner.cached = {"cached"}
    tested.add(request("0", prompt_tokens=TINY), request("cached", prompt_tokens=TINY), request("1"))
    tested.step()
    assert tested.runner.encodes == [["cached"]]
    assert tested.runner.now == 0
    tested.run()
    assert tested.runner.encodes == [["cached"], ["0", "1"]]
    assert len(tested.of(RequestDone)) == 3


def test_equal_prompts_are_one_prompt() -> None:
    tested = engine()
    first, second = several(2)
    tested.add(first, replace(second, token_ids=first.token_ids))
    tested.run()
    assert (tested.runner.cache_misses, tested.runner.cache_hits) == (1, 1)
    assert tested.of(RequestDone)[1].times.encode == pytest.approx(BATCHED.encode.seconds([TINY]))
    for index in range(2 * WINDOW):
        tested.add(*(replace(each, token_ids=(index,) * TINY) for each in several(3)))
        tested.run()
    assert not tested.of(CostCorrected), "as predicted"


def test_a_long_batch_is_sliced_like_a_single_image() -> None:
    """Steps of other samples run between the slices."""
    tested = engine()
    tested.add(request("running", steps=100, prompt_tokens=TINY))
    tested.until(lambda: tested.runner.steps)
    tested.add(*(replace(each, submitted=1.0) for each in several(8)))
    tested.until(lambda: len(tested.runner.encodes) == 2)
    before = len(tested.runner.steps)
    tested.until(lambda: "7" in tested.runner.steps[-1])
    alone = [batch for batch in tested.runner.steps[before:] if batch == ["running"]]
    step = BATCHED.step_seconds(16, [TINY], 1)
    whole = BATCHED.encode.seconds([TINY] * 8)
    assert whole / step / 2 < len(alone) <= whole / step + 1


# Removal and promotion while the batch runs.


@pytest.mark.parametrize("units", range(1, 30))
def test_a_member_can_be_aborted_at_any_time(units: int) -> None:
    tested = engine()
    tested.add(request("other", (96, 64), steps=30), *several(4, images=2, steps=3, prompt_tokens=20))
    for _ in range(units):
        tested.step()
    done = tested.ids(RequestDone)
    tested.core.abort("2")
    sent = len(tested.sent)
    tested.run()
    assert not [message for message in tested.sent[sent:] if getattr(message, "request_id", "") == "2"]
    assert {*tested.ids(RequestDone), *done} >= {"0", "1", "3", "other"}
    assert len(tested.of(ImageDone, "0")) == 2
    assert set(tested.scheduler._seats._taken.values()) == {0}, "a seat is left"


def test_a_batch_whose_members_are_all_aborted_is_dropped() -> None:
    tested = engine()
    tested.add(request("other", (96, 64), steps=30), *several(4))
    tested.until(lambda: names(4) in tested.runner.encodes)
    for name in names(4):
        tested.core.abort(name)
    tested.run()
    assert tested.ids(RequestDone) == ["other"]


@pytest.mark.parametrize("units", range(1, 30))
def test_a_member_can_be_promoted_at_any_time(units: int) -> None:
    tested = engine()
    batch: Priority = "batch"
    tested.add(request("other", (96, 64), steps=30))
    tested.add(*several(4, images=2, steps=3, prompt_tokens=20, priority=batch))
    for _ in range(units):
        tested.step()
    tested.core.promote("2", "interactive")
    tested.run()
    assert sorted(tested.ids(RequestDone)) == ["0", "1", "2", "3", "other"]
    assert sum("2" in batch for batch in tested.runner.encodes) == 1, "encoded once"
    assert len(tested.of(ImageDone)) == 9
    assert not tested.scheduler._order, "a queue is left"


# Failures.


def fails_with(name: str, error: Exception) -> Callable[[Sequence[EngineRequest | SampleState]], None]:
    def before(members: Sequence[EngineRequest | SampleState]) -> None:
        requests = [member.request if isinstance(member, SampleState) else member for member in members]
        if any(each.request_id == name for each in requests):
            raise error

    return before


@pytest.mark.parametrize("error", [ValueError("bad"), OutOfMemoryError("full")])
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_only_the_failing_member_of_a_batch_fails(stage: str, error: Exception) -> None:
    tested = engine()
    setattr(tested.runner, f"before_{stage}", fails_with("3", error))
    tested.add(*several(5))
    tested.run()
    assert tested.ids(RequestFailed) == ["3"]
    assert str(tested.of(RequestFailed)[0].error) == f"{type(error).__name__}: {error}"
    assert sorted(tested.ids(RequestDone)) == ["0", "1", "2", "4"]
    batches = tested.runner.encodes if stage == "encode" else tested.runner.decodes
    assert batches == [names(5), *([name] for name in names(5))], "then one by one"


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_failure_that_does_not_recur_fails_no_request(stage: str) -> None:
    tested = engine()
    failures = [ValueError()]

    def before(members: Sequence[object]) -> None:
        if failures:
            raise failures.pop()

    setattr(tested.runner, f"before_{stage}", before)
    tested.add(*several(5))
    tested.run()
    assert not failures
    assert len(tested.of(RequestDone)) == 5


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_batch_that_runs_out_of_memory_lowers_the_limit_of_its_size(stage: str) -> None:
    tested = engine()

    def before(members: Sequence[object]) -> None:
        if len(members) > 2:
            raise OutOfMemoryError

    setattr(tested.runner, f"before_{stage}", before)
    tested.add(*several(5))
    tested.run()
    assert not tested.of(RequestFailed)
    assert tested.limits.samples((64, 64)) == 2, "half of 5"
    assert tested.limits.samples((96, 64)) == 8


def test_a_single_image_that_runs_out_of_memory_lowers_no_limit() -> None:
    tested = engine()
    tested.runner.before_decode = fails_with("0", OutOfMemoryError())
    tested.add(*several(1))
    tested.run()
    assert tested.limits.samples((64, 64)) == 8


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_fatal_device_error_in_a_batch_ends_the_worker(stage: str) -> None:
    tested = engine()
    setattr(tested.runner, f"before_{stage}", fails_with("1", SystemError()))
    tested.add(*several(3))
    with pytest.raises(SystemError):
        tested.run()
    assert (tested.runner.encodes if stage == "encode" else tested.runner.decodes) == [names(3)]


def test_an_image_that_is_not_finite_fails_only_its_request() -> None:
    tested = engine()
    tested.add(request("nan", images=2, prompt_tokens=TINY, submitted=-1.0), *several(2))

    def before_decode(samples: Sequence[SampleState]) -> None:
        tested.runner.nan += [s for s in samples if s.request.request_id == "nan" and s.image_index == 0]

    tested.runner.before_decode = before_decode
    tested.run()
    assert tested.runner.decodes == [["nan", "nan", "0", "1"]], "it is not run again"
    assert tested.ids(RequestFailed) == ["nan"]
    assert tested.ids(ImageDone) == ["0", "1"]


# Times and predictions.


def test_each_slice_announces_all_members_and_its_seconds() -> None:
    tested = engine()
    tested.add(*several(2, steps=1))
    tested.run()
    units = tested.of(UnitStarted)
    assert {unit.request_ids for unit in units} == {("0", "1")}
    slices = [unit.expected_seconds for unit in units if unit.kind == "decode"]
    assert slices == pytest.approx([BATCHED.step_seconds(16, [TINY], 1)] * len(slices)), "a step of one image"
    assert sum(slices[:-1]) < BATCHED.decode.seconds([16] * 2) < sum(slices)


def test_the_stage_times_of_each_member_are_those_of_the_batch() -> None:
    tested = engine()
    tested.add(request("two", images=2, prompt_tokens=TINY), *several(1))
    tested.run()
    for done in tested.of(RequestDone):
        assert done.times.encode == pytest.approx(0.010 + 0.016)
        assert done.times.decode == pytest.approx(0.010 + 0.048)


@pytest.mark.parametrize("number", [1, 4])
def test_batches_are_observed_as_predicted(number: int) -> None:
    tested = engine()
    ids = count()
    for _ in range(2 * WINDOW):
        tested.add(*(request(str(next(ids)), prompt_tokens=TINY) for _ in range(number)))
        tested.run()
    assert not tested.of(CostCorrected)


def test_cached_prompts_are_no_observations() -> None:
    """Even though an encode has a fixed cost."""
    tested = engine()
    tested.runner.cached = {"again"}
    for index in range(2 * WINDOW):
        tested.add(request(f"again:{index}"))
        tested.run()
    assert not tested.of(CostCorrected)


def test_batches_correct_a_wrong_warm_up() -> None:
    wrong = BATCHED.scaled(encode=8, denoise=1, decode=8)
    tested = Engine(cost=wrong, actual=BATCHED)
    ids = count()
    for _ in range(WINDOW):
        tested.add(*(request(str(next(ids)), prompt_tokens=TINY) for _ in range(4)))
        tested.run()
    cost = tested.scheduler.cost
    assert cost.encode.seconds([TINY] * 4) == pytest.approx(BATCHED.encode.seconds([TINY] * 4), rel=0.15)
    assert cost.decode.seconds([16] * 4) == pytest.approx(BATCHED.decode.seconds([16] * 4), rel=0.15)


@pytest.mark.parametrize("images", [1, 2, 5, 8, 10, 16, 21])
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (128, 128)])
def test_a_request_alone_takes_the_predicted_seconds(size: tuple[int, int], images: int) -> None:
    tested = engine()
    wanted = request("alone", size, images=images, steps=5)
    tested.add(wanted)
    tested.run()
    predicted = BATCHED.request_seconds(wanted)
    # Less if images of two batches are decoded together.
    assert 0.95 * predicted < tested.runner.now < 1.001 * predicted


# Offloaded weights.


def test_steps_run_while_an_encode_waits_for_its_weights() -> None:
    tested = engine()
    tested.add(request("first", steps=12, prompt_tokens=TINY))
    tested.until(lambda: tested.runner.steps)
    tested.add(request("second", prompt_tokens=TINY))
    tested.until(lambda: len(tested.runner.encodes) == 2)
    tested.runner.fetches = True
    before = len(tested.runner.steps)
    for _ in range(3):
        assert {started.kind for started in tested.step() if isinstance(started, UnitStarted)} == {"denoise"}
    assert tested.runner.steps[before:] == [["first"]] * 3
    tested.runner.fetches = False
    tested.run()
    assert set(tested.ids(ImageDone)) == {"first", "second"}


def test_an_encode_that_waits_runs_on_where_there_is_nothing_else() -> None:
    tested = engine()
    tested.runner.fetches = True
    tested.add(request("only", prompt_tokens=TINY))
    tested.run()
    assert tested.ids(ImageDone) == ["only"]
