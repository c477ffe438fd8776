"""EngineCore: takes requests, runs one unit of work at a time, and emits outputs."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from engine.compilation.compilation import Compilation
from engine.cost import TaskKind
from engine.messages import (
    CostCorrected,
    FromWorker,
    ImageDone,
    PreviewReady,
    RequestDone,
    StepDone,
    UnitDone,
    UnitKind,
    UnitStarted,
)
from engine.models.resumable import ResumableTask
from engine.request import EngineRequest, Priority
from engine.runner.request_state import BatchTask, RequestState, SampleState, add_times
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.units import Decode, Denoise, Encode, Unit, request_ids
from engine.worker.batch_tasks import begin_decode, begin_encode
from engine.worker.calibration import Calibration
from engine.worker.failures import failure
from engine.worker.runner_port import Runner

M = TypeVar("M", RequestState, SampleState)
T = TypeVar("T")


class EngineCore:
    """Owns the state of all requests in the worker; `emit` sends their outputs."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        emit: Callable[[FromWorker], None],
        clock: Callable[[], float] = time.monotonic,
        compilation: Compilation | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._emit = emit
        self._clock = clock
        self.compilation = compilation
        self._calibration = Calibration(scheduler.cost)
        self._last: tuple[UnitKind, tuple[str, ...]] | None = None

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do: requests, or compiled code to load."""
        is_loading = self.compilation is not None and self.compilation.has_pieces
        return is_loading or self._scheduler.has_work

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
        if self.compilation:
            self.compilation.advance(self._scheduler.has_work)

    def _run(self, unit: Unit) -> None:
        members = request_ids(unit)
        self._emit(UnitStarted(unit.kind, members, unit.seconds))
        started = self._clock()
        match unit:
            case Encode():
                self._encode(unit)
            case Denoise(samples):
                self._denoise(samples)
            case Decode():
                self._decode(unit)
        self._last = unit.kind, members
        self._report(unit.kind, len(members), self._clock() - started)

    def _report(self, kind: UnitKind, batch_size: int, seconds: float) -> None:
        runner = self._runner
        memory = runner.device.peak_memory_bytes()
        self._emit(UnitDone(kind, batch_size, seconds, memory, runner.cache_hits, runner.cache_misses))

    def _encode(self, unit: Encode) -> None:
        first = unit.requests[0]
        if first.next_encode is None:
            self._start(first)
            return
        task = first.task or begin_encode(self._runner, unit, self._scheduler.cost, self._clock)
        for state, result in self._advance(task, unit):
            state.encoded(result)
            if state.next_encode is None:
                self._start(state)

    def _start(self, state: RequestState) -> None:
        """Draw the noise of the entering images, of which all is encoded."""
        try:
            samples = [self._runner.new_sample(state, index) for index in state.entering]
        except Exception as error:
            self._fail(state, error)
        else:
            self._scheduler.started(state, samples)

    def _denoise(self, samples: list[SampleState]) -> None:
        """Run one step. If it fails, split the batch and retry until the failing sample is isolated."""
        batches = [samples]
        while batches:
            batch = [sample for sample in batches.pop() if not sample.state.is_removed]
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
            self._check_memory(unit.states, error)
            return error
        self._scheduler.stepped(samples)
        seconds = self._clock() - started
        if self.compilation:
            self.compilation.stepped(samples, seconds)
        # A runner waits for the previous step only, so this is a step's time if that was an equal step.
        if self._last == (unit.kind, request_ids(unit)):
            self._calibrate("denoise", unit.seconds, seconds)
        add_times(unit.states, unit.kind, seconds)
        for sample in samples:
            self._after_step(sample)
        return None

    def _after_step(self, sample: SampleState) -> None:
        if sample.state.is_removed:  # because of the preview of another of its images
            return
        request_id, index = sample.request.request_id, sample.image_index
        self._emit(StepDone(request_id, index, sample.steps_done, sample.num_steps))
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
        cost = self._scheduler.cost
        task = unit.samples[0].task or begin_decode(self._runner, unit.samples, cost, self._clock)
        for sample, rgb in self._advance(task, unit):
            if isinstance(rgb, Exception):
                self._fail(sample.state, rgb)
            else:
                self._finish_image(sample, rgb)

    def _finish_image(self, sample: SampleState, rgb: bytes) -> None:
        self._scheduler.decoded(sample)
        request, index = sample.request, sample.image_index
        seed, size = request.seeds[index], request.resolution
        self._emit(ImageDone(request.request_id, index, seed, *size, rgb, self._runner.precision))
        if sample.state.images_left == 0:
            self._finish(sample.state)

    def _finish(self, state: RequestState) -> None:
        self._scheduler.remove(state.request.request_id)
        self._emit(RequestDone(state.request.request_id, state.stage_times))

    def _advance(self, task: BatchTask[M, T], unit: Encode | Decode) -> Iterator[tuple[M, T]]:
        """Run a task for a slice. Once it is done, return its members with their results."""
        started = self._clock()
        try:
            results = self._run_slice(task.work, unit)
        except Exception as error:
            self._fail_task(task, error)
            return iter(())
        add_times(task.states, unit.kind, self._clock() - started)
        if results is None:
            return iter(())
        self._calibrate_task(task, unit.kind)
        return task.pair(results)

    def _run_slice(self, work: ResumableTask[T], unit: Encode | Decode) -> T | None:
        self._runner.device.synchronize()  # the previous step may still run, and is not part of this task
        before = work.seconds
        try:
            return work.advance(unit.slice_seconds)
        finally:
            self._scheduler.delayed(unit.states[0], work.seconds - before)

    def _fail_task(self, task: BatchTask[M, T], error: Exception) -> None:
        """Fail the only member, or let each run alone."""
        if len(task.members) == 1:
            self._fail(task.states[0], error)
            return
        self._raise_if_fatal(error)
        self._check_memory(task.states, error)
        for member in task.members:
            member.task, member.must_run_alone = None, True

    def _check_memory(self, states: list[RequestState], error: Exception) -> None:
        """If a batch with members of these requests ran out of memory, free some and lower its limit."""
        if self._runner.device.is_out_of_memory(error):
            error.__traceback__ = None  # its frames reference the tensors
            self._runner.device.release_memory()
            self._scheduler.ran_out_of_memory(states)

    def _calibrate_task(self, task: BatchTask[M, T], kind: TaskKind) -> None:
        if task.lengths:
            self._calibrate(kind, self._calibration.cost.of(kind).seconds(task.lengths), task.work.seconds)

    def _calibrate(self, kind: UnitKind, expected: float, seconds: float) -> None:
        """Update the cost model that the scheduler, admission control and the watchdog use."""
        if self._calibration.observe(kind, expected, seconds):
            self._scheduler.recalibrate(self._calibration.cost)
            self._emit(CostCorrected(self._calibration.cost))

    def _fail(self, state: RequestState, error: Exception) -> None:
        self._raise_if_fatal(error)
        self._scheduler.remove(state.request.request_id)
        self._emit(failure(state.request, error))

    def _raise_if_fatal(self, error: Exception) -> None:
        if self._runner.device.is_fatal(error):
            raise error
