"""EngineCore: takes requests, runs one unit of work at a time, and emits outputs."""

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
from engine.runner.request_state import Phase, RequestState, SampleState
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.units import Decode, Denoise, Encode, Unit
from engine.worker.calibration import Calibration
from engine.worker.runner_port import Runner

T = TypeVar("T")

logger = logging.getLogger(__name__)


class EngineCore:
    """Owns the state of all requests in the worker; `emit` sends their outputs."""

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
        """Queue a request."""
        state = self._scheduler.add(request)
        if state.images_left == 0:  # all images were sent before the previous worker died
            state.started = self._clock()
            self._finish(state)

    def abort(self, request_id: str) -> None:
        """Remove a request and emit nothing more for it. An unknown id is ignored."""
        self._scheduler.remove(request_id)

    def promote(self, request_id: str, priority: Priority) -> None:
        """Change the priority of a request, from the next unit on. An unknown id is ignored."""
        self._scheduler.promote(request_id, priority)

    def step(self) -> None:
        """Run one unit of work, if there is any. A failure ends only the request that causes it."""
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
            if state.phase is not Phase.ENCODED:
                self._advance_encode(unit)
            if state.phase is not Phase.ENCODED:
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
        if state.phase is Phase.WAITING:
            task = ResumableTask(self._runner.encode_prompt(state.request), self._clock)
            state.begin_encoding(task, self._clock())
        assert state.encode_task is not None
        task = state.encode_task
        conditioning = self._advance(task, state, unit.slice_seconds)
        if conditioning is None:
            return
        state.end_encoding(conditioning)
        if self._runner.cache_hits == hits:
            self._calibrate("encode", unit.whole_seconds, task.seconds)

    def _denoise(self, samples: list[SampleState]) -> None:
        """Run one step. If it fails, split the batch and retry until the failing sample is isolated."""
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
        """Run one step. Returns the error if it fails, in which case no sample has advanced."""
        unit, started = Denoise.predict(self._calibration.cost, samples), self._clock()
        try:
            self._runner.denoise_step(samples)
        except Exception as error:
            if self._runner.device.is_out_of_memory(error):
                error.__traceback__ = None  # its frames reference the tensors
                self._runner.device.release_memory()
                self._scheduler.ran_out_of_memory(samples)
            return error
        self._scheduler.stepped(samples)
        seconds = self._clock() - started
        # A runner waits for the previous step only, so this is a step's time if that was an equal step.
        if self._last == (unit.kind, unit.request_ids):
            self._calibrate("denoise", unit.seconds, seconds)
        for state in {sample.state: None for sample in samples}:
            state.times["denoise"] += seconds
        for sample in samples:
            self._after_step(sample)
        return None

    def _after_step(self, sample: SampleState) -> None:
        if sample.state.is_failed:  # because of the preview of another of its images
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
            if sample.decode_task is None:
                sample.decode_task = ResumableTask(self._runner.decode(sample), self._clock)
            rgb = self._advance(sample.decode_task, state, unit.slice_seconds)
        except Exception as error:
            self._fail(state, error)
            return
        state.times["decode"] += self._clock() - started
        if rgb is None:
            return
        self._calibrate("decode", unit.whole_seconds, sample.decode_task.seconds)
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

    def _advance(self, task: ResumableTask[T], state: RequestState, seconds: float) -> T | None:
        """Run a task for a slice of `seconds`. Returns its result once it is done."""
        self._runner.device.synchronize()  # the previous step may still run, and is not part of this task
        before = task.seconds
        try:
            return task.advance(seconds)
        finally:
            self._scheduler.delayed(state, task.seconds - before)

    def _calibrate(self, kind: UnitKind, expected: float, seconds: float) -> None:
        """Update the cost model that the scheduler, admission control and the watchdog use."""
        if self._calibration.observe(kind, expected, seconds):
            self._scheduler.recalibrate(self._calibration.cost)
            self._emit(CostCorrected(self._calibration.cost))

    def _fail(self, state: RequestState, error: Exception) -> None:
        if self._runner.device.is_fatal(error):
            raise error
        state.is_failed = True
        request_id = state.request.request_id
        logger.error("request %s failed", request_id, exc_info=error)
        self._scheduler.remove(request_id)
        self._emit(RequestFailed(request_id, f"{type(error).__name__}: {error}"))


def _stage_times(state: RequestState) -> StageTimes:
    return StageTimes(queue=state.started - state.request.submitted, **state.times)
