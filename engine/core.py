"""EngineCore: requests in, one unit of work at a time, outputs out."""

import logging
import time
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

from engine.messages import (
    EngineRequest,
    FromWorker,
    ImageDone,
    PreviewReady,
    Priority,
    RequestDone,
    RequestFailed,
    StageTimes,
    StepDone,
    UnitDone,
    UnitKind,
    UnitStarted,
)
from engine.request import Conditioning, Preview, RequestState, SampleState
from engine.scheduler import Decode, Denoise, Encode, Scheduler, Unit

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Device(Protocol):
    """What the core asks of the device."""

    def peak_memory_bytes(self) -> int: ...
    def release_memory(self) -> None: ...
    def is_out_of_memory(self, error: Exception) -> bool: ...
    def is_fatal(self, error: Exception) -> bool: ...


class Runner(Protocol):
    """What the core asks of a model runner. Work that yields may be interrupted there."""

    @property
    def device(self) -> Device: ...
    @property
    def cache_hits(self) -> int: ...
    @property
    def cache_misses(self) -> int: ...
    def encode_prompt(self, request: EngineRequest) -> Generator[None, None, Conditioning]: ...
    def new_sample(self, state: RequestState, image_index: int) -> SampleState: ...
    def denoise_step(self, samples: list[SampleState]) -> None: ...
    def decode(self, sample: SampleState) -> Generator[None, None, bytes]: ...
    def preview(self, sample: SampleState) -> Preview: ...


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

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: EngineRequest) -> None:
        self._scheduler.add(request)

    def abort(self, request_id: str) -> None:
        """Its seat is free from the next step on; nothing more is sent for it."""
        self._scheduler.remove(request_id)

    def promote(self, request_id: str, priority: Priority) -> None:
        """It runs at this priority from the next step on."""
        self._scheduler.promote(request_id, priority)

    def step(self) -> None:
        """Run one unit of work, if there is any. A failure ends only the request it is traced to."""
        unit = self._scheduler.next_unit()
        if unit is None:
            return
        kind, requests = _describe(unit)
        self._emit(UnitStarted(kind, requests, self._scheduler.seconds(unit)))
        started = self._clock()
        match unit:
            case Encode(state):
                self._encode(state)
            case Denoise(samples):
                self._denoise(samples)
            case Decode(sample):
                self._decode(sample)
        self._report(kind, len(requests), self._clock() - started)

    def _report(self, kind: UnitKind, batch_size: int, seconds: float) -> None:
        runner = self._runner
        memory = runner.device.peak_memory_bytes()
        self._emit(UnitDone(kind, batch_size, seconds, memory, runner.cache_hits, runner.cache_misses))

    def _encode(self, state: RequestState) -> None:
        started = self._clock()
        try:
            if state.work is None:
                state.started = started
                state.work = self._runner.encode_prompt(state.request)
            conditioning = self._advance(state.work, state)
            state.times["encode"] += self._clock() - started
            if conditioning is None:
                return
            state.conditioning, state.work = conditioning, None
            indices = [i for i in range(len(state.request.seeds)) if i not in state.request.skip]
            samples = [self._runner.new_sample(state, index) for index in indices]
        except Exception as error:
            self._fail(state, error)
            return
        state.images_left = len(samples)
        self._scheduler.encoded(state, samples)
        if not samples:  # a second run, after all images of the first were sent
            self._finish(state)

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
        key, started = samples[0].batch_key, self._clock()
        try:
            self._runner.denoise_step(samples)
        except Exception as error:
            if self._runner.device.is_out_of_memory(error):
                error.__traceback__ = None  # its frames hold the tensors
                self._runner.device.release_memory()
                self._scheduler.limits.ran_out_of_memory(key, len(samples))
            return error
        self._scheduler.limits.stepped(key, len(samples))
        seconds = self._clock() - started
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
        self._scheduler.stepped(sample)
        due = sample.preview_due
        if due is None:
            return
        try:
            preview = self._runner.preview(sample)
        except Exception as error:
            self._fail(sample.state, error)
            return
        self._emit(PreviewReady(request_id, index, due, preview.width, preview.height, preview.rgb))

    def _decode(self, sample: SampleState) -> None:
        state, started = sample.state, self._clock()
        try:
            sample.work = sample.work or self._runner.decode(sample)
            rgb = self._advance(sample.work, state)
        except Exception as error:
            self._fail(state, error)
            return
        state.times["decode"] += self._clock() - started
        if rgb is None:
            return
        self._scheduler.decoded(sample)
        self._emit_image(sample, rgb)
        state.images_left -= 1
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

    def _advance(self, work: Generator[None, None, T], state: RequestState) -> T | None:
        """Run `work` for one slice, or to its end; its result, or None if it is not done."""
        started = self._clock()
        until = started + self._scheduler.slice_seconds(state)
        try:
            next(work)
            while self._clock() < until:
                next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            self._scheduler.held_up(state, self._clock() - started)
        return None

    def _fail(self, state: RequestState, error: Exception) -> None:
        if self._runner.device.is_fatal(error):
            raise error
        state.is_failed = True
        request_id = state.request.request_id
        logger.error("request %s failed", request_id, exc_info=error)
        self._scheduler.remove(request_id)
        self._emit(RequestFailed(request_id, "generation_failed", f"{type(error).__name__}: {error}"))


def _describe(unit: Unit) -> tuple[UnitKind, tuple[str, ...]]:
    match unit:
        case Encode(state):
            return "encode", (state.request.request_id,)
        case Denoise(samples):
            return "denoise", tuple(sample.request.request_id for sample in samples)
        case Decode(sample):
            return "decode", (sample.request.request_id,)


def _stage_times(state: RequestState) -> StageTimes:
    return StageTimes(queue=state.started - state.request.submitted, **state.times)
