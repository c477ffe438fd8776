"""EngineCore: requests in, one unit of work at a time, outputs out."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from engine.messages import (
    CostCorrected,
    FromWorker,
    ImageDone,
    PreviewReady,
    RequestDone,
    RequestFailed,
    StageTimes,
    StepDone,
    UnitDone,
    UnitKind,
    UnitStarted,
)
from engine.models.resumable import ResumableTask
from engine.request import EngineRequest, Priority
from engine.runner.request_state import RequestState, SampleState
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.units import Decode, Denoise, Encode, Unit
from engine.worker.calibration import Calibration
from engine.worker.runner_port import Runner

T = TypeVar("T")

logger = logging.getLogger(__name__)


class EngineCore:
    """Owns the state of every request it was given; `emit` sends what comes of them."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        emit: Callable[[FromWorker], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._emit = emit
        self._clock = clock
        self._calibration = Calibration(scheduler.cost)
        self._last: tuple[UnitKind, tuple[str, ...]] | None = None

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: EngineRequest) -> None:
        state = self._scheduler.add(request)
        if state.images_left == 0:  # a second run, after all images of the first were sent
            state.started = self._clock()
            self._finish(state)

    def abort(self, request_id: str) -> None:
        """Its seat is free from the next step on; nothing more is sent for it."""
        self._scheduler.remove(request_id)

    def promote(self, request_id: str, priority: Priority) -> None:
        """It runs at this priority from the next step on."""
        self._scheduler.promote(request_id, priority)

    def step(self) -> None:
        """Run one unit of work, if there is any. A failure ends only the request it is traced to."""
        unit = self._scheduler.next_unit()
        if unit is not None:
            self._run(unit)

    def _run(self, unit: Unit) -> None:
        self._emit(UnitStarted(unit.kind, unit.request_ids, unit.seconds))
        started = self._clock()
        match unit:
            case Encode():
                self._encode(unit)
            case Denoise(samples):
                self._denoise(samples)
            case Decode():
                self._decode(unit)
        self._last = unit.kind, unit.request_ids
        self._report(unit.kind, len(unit.request_ids), self._clock() - started)

    def _report(self, kind: UnitKind, batch_size: int, seconds: float) -> None:
        runner = self._runner
        memory = runner.device.peak_memory_bytes()
        self._emit(UnitDone(kind, batch_size, seconds, memory, runner.cache_hits, runner.cache_misses))

    def _encode(self, unit: Encode) -> None:
        state, started = unit.request, self._clock()
        try:
            if not state.is_encoded:
                self._advance_encode(unit)
            if not state.is_encoded:
                return
            samples = [self._runner.new_sample(state, index) for index in state.entering]
        except Exception as error:
            self._fail(state, error)
            return
        finally:
            state.times["encode"] += self._clock() - started
        self._scheduler.started(state, samples)

    def _advance_encode(self, unit: Encode) -> None:
        state, hits = unit.request, self._runner.cache_hits
        if state.work is None:
            state.started = self._clock()
            state.work = ResumableTask(self._runner.encode_prompt(state.request), self._clock)
        work = state.work
        state.conditioning = self._advance(work, state, unit.slice_seconds)
        if not state.is_encoded:
            return
        state.work = None
        if self._runner.cache_hits == hits:
            expected = self._scheduler.cost.encode.seconds([len(state.request.token_ids)])
            self._calibrate("encode", expected, work.seconds)

    def _denoise(self, samples: list[SampleState]) -> None:
        """One step for all; if that fails, for each half, down to the guilty."""
        batches = [samples]
        while batches:
            batch = [sample for sample in batches.pop() if not sample.state.is_failed]
            error = self._try_step(batch) if batch else None
            if error is not None and len(batch) == 1:
                self._fail(batch[0].state, error)
            elif error is not None:
                middle = len(batch) // 2
                batches += [batch[middle:], batch[:middle]]

    def _try_step(self, samples: list[SampleState]) -> Exception | None:
        """What went wrong, if anything: then no sample has moved."""
        unit, started = Denoise.predict(self._scheduler.cost, samples), self._clock()
        try:
            self._runner.denoise_step(samples)
        except Exception as error:
            if self._runner.device.is_out_of_memory(error):
                error.__traceback__ = None  # its frames hold the tensors
                self._runner.device.release_memory()
                self._scheduler.ran_out_of_memory(samples)
            return error
        self._scheduler.stepped(samples)
        seconds = self._clock() - started
        if self._last == (unit.kind, unit.request_ids):  # a device may return once the previous step is done
            self._calibrate("denoise", unit.seconds, seconds)
        for state in {sample.state: None for sample in samples}:
            state.times["denoise"] += seconds
        for sample in samples:
            self._after_step(sample)
        return None

    def _after_step(self, sample: SampleState) -> None:
        if sample.state.is_failed:  # by the preview of another of its images
            return
        request_id, index = sample.request.request_id, sample.image_index
        self._emit(StepDone(request_id, index, sample.step_index, sample.num_steps))
        due = sample.preview_due
        if due is None:
            return
        try:
            preview = self._runner.preview(sample)
        except Exception as error:
            self._fail(sample.state, error)
            return
        self._emit(PreviewReady(request_id, index, due, preview.width, preview.height, preview.rgb))

    def _decode(self, unit: Decode) -> None:
        sample, state, started = unit.sample, unit.sample.state, self._clock()
        try:
            sample.work = sample.work or ResumableTask(self._runner.decode(sample), self._clock)
            rgb = self._advance(sample.work, state, unit.slice_seconds)
        except Exception as error:
            self._fail(state, error)
            return
        state.times["decode"] += self._clock() - started
        if rgb is None:
            return
        expected = self._scheduler.cost.decode.seconds([self._scheduler.cost.image_tokens(*sample.batch_key)])
        self._calibrate("decode", expected, sample.work.seconds)
        self._scheduler.decoded(sample)
        self._emit_image(sample, rgb)
        if state.images_left == 0:
            self._finish(state)

    def _finish(self, state: RequestState) -> None:
        self._scheduler.remove(state.request.request_id)
        self._emit(RequestDone(state.request.request_id, _stage_times(state)))

    def _emit_image(self, sample: SampleState, rgb: bytes) -> None:
        request, index = sample.request, sample.image_index
        self._emit(
            ImageDone(request.request_id, index, request.seeds[index], request.width, request.height, rgb)
        )

    def _advance(self, work: ResumableTask[T], state: RequestState, seconds: float) -> T | None:
        """Run `work` for one slice of `seconds`, or to its end; its result, or None if it is not done."""
        self._runner.device.synchronize()  # the previous step may not be done, and is not part of this work
        before = work.seconds
        try:
            return work.advance(seconds)
        finally:
            self._scheduler.held_up(state, work.seconds - before)

    def _calibrate(self, kind: UnitKind, expected: float, seconds: float) -> None:
        """Scheduling, admission and the watchdog go by what work really takes."""
        if self._calibration.observe(kind, expected, seconds):
            self._scheduler.cost = self._calibration.cost
            self._emit(CostCorrected(self._calibration.cost))

    def _fail(self, state: RequestState, error: Exception) -> None:
        if self._runner.device.is_fatal(error):
            raise error
        state.is_failed = True
        request_id = state.request.request_id
        logger.error("request %s failed", request_id, exc_info=error)
        self._scheduler.remove(request_id)
        self._emit(RequestFailed(request_id, "generation_failed", f"{type(error).__name__}: {error}"))


def _stage_times(state: RequestState) -> StageTimes:
    return StageTimes(queue=state.started - state.request.submitted, **state.times)
