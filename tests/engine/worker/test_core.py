"""Isolation of failures, outputs and stage times of EngineCore, on a fake runner."""

from collections.abc import Callable

import pytest

from engine.messages import (
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    StepDone,
    UnitDone,
    UnitStarted,
)
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.batch_limits import RECOVERY_STEPS
from tests.engine.fakes import COST, Engine, OutOfMemoryError, joined, request

KEY = (64, 64)


def failing(name: str, error: Exception) -> Callable[[list[SampleState]], None]:
    """Steps of batches with this request raise, from its third step on."""

    def before_step(samples: list[SampleState]) -> None:
        if any(sample.request.request_id == name and sample.step_index >= 2 for sample in samples):
            raise error

    return before_step


def eight() -> Engine:
    engine = Engine()
    engine.add(*(request(str(number), steps=40) for number in range(8)))
    return engine


@pytest.mark.parametrize("error", [ValueError("bad"), FloatingPointError("NaN"), OutOfMemoryError("full")])
@pytest.mark.parametrize("name", ["0", "3", "7"])
def test_only_the_failing_member_of_a_batch_fails(error: Exception, name: str) -> None:
    engine = eight()
    engine.runner.before_step = failing(name, error)
    engine.run()
    assert engine.ids(RequestFailed) == [name]
    assert str(engine.of(RequestFailed)[0].error) == f"{type(error).__name__}: {error}"
    assert sorted(engine.ids(RequestDone)) == sorted({*"01234567"} - {name})
    assert engine.scheduler.num_running == 0


def test_no_sample_takes_a_step_twice_when_a_batch_is_split() -> None:
    engine = eight()
    engine.runner.before_step = failing("3", ValueError())
    engine.run()
    for name in {*"01234567"} - {"3"}:
        assert len(joined(engine.runner.steps, name)) == 40
        assert [step.step for step in engine.of(StepDone, name)] == list(range(1, 41))


def test_several_failing_members_and_a_request_of_several_images() -> None:
    engine = Engine()
    engine.add(request("failing", images=3), request("bystander", images=2), request("other", images=3))

    def before_step(samples: list[SampleState]) -> None:
        if {sample.request.request_id for sample in samples} & {"failing", "other"}:
            raise ValueError

    engine.runner.before_step = before_step
    engine.run()
    assert sorted(engine.ids(RequestFailed)) == ["failing", "other"]
    assert engine.ids(ImageDone) == ["bystander"] * 2


def test_a_transient_failure_fails_no_request() -> None:
    engine = eight()
    failures = [ValueError()]

    def before_step(samples: list[SampleState]) -> None:
        if len(samples) == 8 and failures:
            raise failures.pop()

    engine.runner.before_step = before_step
    engine.run()
    assert not failures
    assert len(engine.of(RequestDone)) == 8


def test_the_limit_halves_when_memory_runs_out_and_recovers_slowly() -> None:
    engine = Engine(max_batch_size=8)
    engine.add(*(request(str(number), steps=40) for number in range(8)))

    def before_step(samples: list[SampleState]) -> None:
        if len(samples) > 6:
            raise OutOfMemoryError

    engine.runner.before_step = before_step
    engine.run()
    assert not engine.of(RequestFailed)
    assert max(map(len, engine.runner.steps)) <= 6
    assert engine.limits.samples(KEY) == 4, "half of 8"
    assert engine.limits.samples((128, 64)) == 8, "other resolutions are unchanged"
    for expected in (4, 5):
        assert engine.limits.samples(KEY) == expected
        for _ in range(RECOVERY_STEPS):
            engine.limits.stepped(KEY, expected)
    assert engine.limits.samples(KEY) == 6


def test_steps_of_small_batches_do_not_raise_a_lowered_limit() -> None:
    engine = Engine(max_batch_size=8)
    engine.limits.ran_out_of_memory(KEY, 8)
    for _ in range(2 * RECOVERY_STEPS):
        engine.limits.stepped(KEY, 3)
    assert engine.limits.samples(KEY) == 4


def test_a_limit_recovers_up_to_the_configured_size() -> None:
    engine = Engine(max_batch_size=2)
    engine.limits.ran_out_of_memory(KEY, 2)
    for _ in range(5 * RECOVERY_STEPS):
        engine.limits.stepped(KEY, engine.limits.samples(KEY))
    assert engine.limits.samples(KEY) == 2


def test_a_failure_to_start_an_image_fails_only_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = eight()
    new_sample = engine.runner.new_sample

    def fails(state: RequestState, image_index: int) -> SampleState:
        if state.request.request_id == "3":
            raise ValueError("bad")
        return new_sample(state, image_index)

    monkeypatch.setattr(engine.runner, "new_sample", fails)
    engine.run()
    assert engine.ids(RequestFailed) == ["3"]
    assert len(engine.of(RequestDone)) == 7


def test_a_failing_preview_fails_only_its_request() -> None:
    engine = Engine()
    engine.add(request("failing", images=2, num_previews=1), request("other"))

    def before_preview(sample: SampleState) -> None:
        raise ValueError("no preview")

    engine.runner.before_preview = before_preview
    engine.run()
    assert engine.ids(RequestFailed) == ["failing"]
    assert engine.ids(RequestDone) == ["other"]


def test_a_fatal_device_error_ends_the_worker() -> None:
    engine = eight()
    engine.runner.before_step = failing("3", SystemError())
    with pytest.raises(SystemError):
        engine.run()


def test_a_unit_is_announced_with_its_members_before_it_runs() -> None:
    engine = eight()
    announced: list[set[str]] = []

    def before_step(samples: list[SampleState]) -> None:
        announced.append(set(engine.sent[-1].request_ids))  # type: ignore[union-attr]
        assert announced[-1] == {sample.request.request_id for sample in samples}

    engine.runner.before_step = before_step
    engine.run()
    assert announced
    assert [type(each) for each in engine.of(UnitStarted)] == [UnitStarted] * len(engine.of(UnitDone))


def test_every_image_takes_its_steps_and_is_sent_before_the_request_is_done() -> None:
    engine = Engine()
    engine.add(request("one", steps=5, images=2))
    engine.run()
    for index in (0, 1):
        steps = [each.step for each in engine.of(StepDone) if each.image_index == index]
        assert steps == [1, 2, 3, 4, 5]
    assert [image.image_index for image in engine.of(ImageDone)] == [0, 1]
    assert [type(message) for message in engine.sent[-2:]] == [RequestDone, UnitDone]


def test_previews_are_spread_over_the_steps() -> None:
    engine = Engine()
    engine.add(request("one", steps=12, num_previews=3))
    engine.run()
    steps = [message for message in engine.sent if isinstance(message, StepDone | PreviewReady)]
    at = [steps[i - 1].step for i, message in enumerate(steps) if isinstance(message, PreviewReady)]
    assert at == [3, 6, 9]
    assert [each.preview_index for each in engine.of(PreviewReady)] == [0, 1, 2]


def test_a_second_run_skips_the_images_already_sent() -> None:
    engine = Engine()
    engine.add(
        request("some", images=3, skip=frozenset({1})), request("all", images=2, skip=frozenset({0, 1}))
    )
    engine.run()
    assert [(image.request_id, image.seed) for image in engine.of(ImageDone)] == [("some", 0), ("some", 2)]
    assert sorted(engine.ids(RequestDone)) == ["all", "some"]


def test_stage_times_count_a_step_of_several_images_once() -> None:
    engine = Engine()
    engine.add(request("one", steps=3, images=2))
    engine.run()
    times = engine.of(RequestDone)[0].times
    step = COST.step_seconds(16, [10, 10], 2)
    assert times.denoise == pytest.approx(3 * step)
    assert times.encode == pytest.approx(0.010)
    assert times.decode == pytest.approx(0.032)
    assert sum((times.queue, times.encode, times.denoise, times.decode)) == pytest.approx(engine.runner.now)
