"""Compiles the transformers' blocks beside serving, and switches to them if they are faster. Torch-free."""

import copy
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.messages import FromWorker, Notice, UnitStarted
from engine.runner.request_state import SampleState

# Kinds of batches that are compared, and runs of each.
_KINDS, _RUNS = 4, 3
# Least speedup that is worth a switch.
_GAIN = 1.03
# Expected seconds of a piece of loading: importing the compiler.
_PIECE_SECONDS = 3.0


class Task(Protocol):
    """A task in another process. `has_ended` raises RuntimeError if it has failed."""

    def has_ended(self) -> bool: ...
    def fileno(self) -> int: ...


@dataclass(slots=True)
class _Kind:
    """A kind of batch: `size` samples like `sample`, and the seconds that were spent on such batches."""

    sample: SampleState
    size: int
    seconds: float = 0.0
    plain: float = 0.0
    compiled: float = 0.0

    def __str__(self) -> str:
        width, height = self.sample.request.resolution
        images = f" ({self.size} images)" if self.size > 1 else ""
        return f"{self.plain / self.compiled:.2f}x at {width}x{height}{images}"


class Compilation:
    """Advances between two units of work: waits for work, compiles in another process, loads and compares.

    `start_task` compiles to the disk cache, which starts once steps have taken `start_seconds`, and `load`
    loads from there. `switch` is called if the compiled blocks are faster. After a failure the plain blocks
    stay.
    """

    def __init__(
        self,
        start_task: Callable[[], Task],
        load: Callable[[], Generator[None, None, None]],
        run_step: Callable[[list[SampleState]], None],
        switch: Callable[[], None],
        emit: Callable[[FromWorker], None],
        start_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start_task = start_task
        self._load = load
        self._run_step = run_step
        self._switch = switch
        self._emit = emit
        self._clock = clock
        self._seconds_left = start_seconds
        self._longest_step = 0.0
        self._since_piece = self._piece_seconds = 0.0
        self._kinds: OrderedDict[object, _Kind] = OrderedDict()
        self._pieces = self._run()
        self.task: Task | None = None
        self.has_pieces = False
        self._is_done = False

    def stepped(self, samples: Sequence[SampleState], seconds: float) -> None:
        """A step of these samples took `seconds`. Samples with adapters do not run in compiled blocks."""
        self._since_piece += seconds
        self._longest_step = max(self._longest_step, seconds)
        if self._is_done or any(sample.request.adapters for sample in samples):
            return
        self._seconds_left -= seconds
        first, size = samples[0], len(samples)
        key = (first.batch_key, size)
        kind = self._kinds.setdefault(key, _Kind(first, size))
        kind.sample = _at_first_step(first)
        kind.seconds += seconds
        self._kinds.move_to_end(key)
        if len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)

    def advance(self, has_requests: bool) -> None:
        """Do the next piece, if there is any. While there are requests, pieces take half of the time."""
        if has_requests and self._since_piece < self._piece_seconds:
            return
        started, self._since_piece = self._clock(), 0.0
        try:
            next(self._pieces, None)
            self._piece_seconds = self._clock() - started
        except Exception as error:
            self._end()
            self._note(logging.WARNING, f"compiling the blocks failed, plain blocks stay: {_text(error)}")

    def _run(self) -> Generator[None, None, None]:
        while self._seconds_left > 0:
            yield
        self.task = self._start_task()
        while not self.task.has_ended():
            yield
        self.task, self.has_pieces = None, True
        yield from self._announcing(self._load())
        kinds = list(self._kinds.values())
        yield from self._announcing(self._compare(kinds))
        self._end()
        self._decide(kinds)

    def _end(self) -> None:
        self.task, self.has_pieces, self._is_done = None, False, True
        self._kinds.clear()

    def _announcing(self, pieces: Generator[None, None, None]) -> Generator[None, None, None]:
        """Tell the client before each piece that no request is in it, and that it may take a while."""
        piece = UnitStarted("compile", (), max(_PIECE_SECONDS, self._longest_step))
        self._emit(piece)
        for _ in pieces:
            yield
            self._emit(piece)

    def _compare(self, kinds: list[_Kind]) -> Generator[None, None, None]:
        for kind in kinds:
            times: dict[bool, list[float]] = {False: [], True: []}
            for is_compiled in (False, True) * _RUNS:
                times[is_compiled].append(self._time(kind, is_compiled))
                yield
            kind.plain, kind.compiled = min(times[False]), min(times[True])

    def _time(self, kind: _Kind, is_compiled: bool) -> float:
        samples = [_at_first_step(kind.sample) for _ in range(kind.size)]
        for sample in samples:
            sample.state.is_compiled = is_compiled
        started = self._clock()
        self._run_step(samples)
        return self._clock() - started

    def _decide(self, kinds: list[_Kind]) -> None:
        """Switch if the latest kinds of work are faster, by the seconds spent on each."""
        spent = sum(kind.seconds for kind in kinds)
        gain = spent / sum(kind.seconds * kind.compiled / kind.plain for kind in kinds)
        if gain >= _GAIN:
            self._switch()
        verdict = "new requests use them" if gain >= _GAIN else "plain blocks stay"
        each = ", ".join(map(str, kinds))
        self._note(logging.INFO, f"compiled blocks are {gain:.2f} times as fast ({each}): {verdict}")

    def _note(self, level: int, text: str) -> None:
        self._emit(Notice(level, text))


def _at_first_step(sample: SampleState) -> SampleState:
    """A copy with a state of its own."""
    copied = copy.copy(sample)
    copied.state, copied.step_index, copied.task = copy.copy(sample.state), 0, None
    return copied


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"
