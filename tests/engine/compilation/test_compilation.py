"""Compilation beside serving: when it starts, what it may delay, and the switch between two requests."""

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.compilation.compilation import Compilation
from engine.messages import Notice, RequestDone, RequestFailed, UnitStarted
from engine.request import AdapterUse
from engine.runner.request_state import SampleState
from tests.engine.fakes import Engine, request, step_seconds

PIECE_SECONDS = 0.5


@dataclass
class Compiler:
    """Compiles once `is_done`, or fails with `fault`; the compiled blocks take `share` of the plain time.

    `steps` are the batches of requests: whether each sample is compiled, by request id.
    """

    share: float = 0.5
    is_done: bool = True
    fault: Exception | None = None
    load_fault: Exception | None = None
    starts: int = 0
    loads: list[float] = field(default_factory=list)
    steps: list[list[tuple[str, bool]]] = field(default_factory=list)

    def engine(self, start_seconds: float = 0.5, **options: Any) -> Engine:
        def compiling(engine: Engine) -> Compilation:
            def run(samples: Sequence[SampleState]) -> None:
                engine.runner.now += step_seconds(samples) * (
                    self.share if samples[0].state.is_compiled else 1
                )

            engine.runner.before_step = self._record
            return Compilation(
                self._start,
                lambda: self._load(engine),
                run,
                engine.scheduler.use_compiled_blocks,
                engine.sent.append,
                start_seconds,
                engine.runner.clock,
            )

        return Engine(compiling=compiling, **options)

    def _record(self, samples: list[SampleState]) -> None:
        self.steps.append([(each.request.request_id, each.state.is_compiled) for each in samples])

    def _start(self) -> "Compiler":
        self.starts += 1
        return self

    def has_ended(self) -> bool:
        if self.fault:
            raise self.fault
        return self.is_done

    def fileno(self) -> int:
        raise NotImplementedError

    def _load(self, engine: Engine) -> Generator[None, None, None]:
        if self.load_fault:
            raise self.load_fault
        for _ in range(3):
            engine.runner.now += PIECE_SECONDS
            self.loads.append(engine.runner.now)
            yield

    def variants(self) -> dict[str, set[bool]]:
        """Whether the steps of each request were compiled."""
        found: dict[str, set[bool]] = {}
        for batch in self.steps:
            for name, is_compiled in batch:
                found.setdefault(name, set()).add(is_compiled)
        return found


def notices(engine: Engine) -> list[Notice]:
    found: list[Notice] = engine.of(Notice)
    return found


def serve(engine: Engine, count: int, **fields: Any) -> None:
    """Requests that overlap: each is added while the one before runs."""
    for number in range(count):
        engine.add(request(f"{fields.get('size', '')}{number}", steps=40, **fields))
        for _ in range(20):
            engine.step()
    engine.run()


def test_nothing_starts_before_the_device_has_worked_for_a_while() -> None:
    compiler = Compiler()
    engine = compiler.engine(start_seconds=1.0)
    serve(engine, 2)
    assert engine.runner.now < 1.0
    assert compiler.starts == 0
    serve(engine, 8)
    assert compiler.starts == 1


def test_new_requests_switch_and_none_mixes_both() -> None:
    compiler = Compiler()
    engine = compiler.engine()
    serve(engine, 40, images=2)
    variants = compiler.variants()
    assert all(len(each) == 1 for each in variants.values())
    in_order = [is_compiled for (is_compiled,) in variants.values()]
    assert in_order == sorted(in_order), "plain requests, then compiled ones"
    assert set(in_order) == {False, True}
    assert len(engine.of(RequestDone)) == 40


def test_old_and_new_requests_never_share_a_step() -> None:
    compiler = Compiler()
    engine = compiler.engine()
    serve(engine, 40)
    assert all(len({is_compiled for _, is_compiled in batch}) == 1 for batch in compiler.steps)
    together = [{name for name, _ in batch} for batch in compiler.steps if len(batch) > 1]
    assert together, "requests of one kind share steps"


def test_requests_with_adapters_stay_plain_and_are_not_compared() -> None:
    compiler, uses = Compiler(), (AdapterUse("a", "", "a", 1.0),)
    engine = compiler.engine()
    serve(engine, 10, size=(128, 64), adapters=uses)
    assert compiler.starts == 0
    serve(engine, 40)
    serve(engine, 4, size=(64, 128), adapters=uses)
    assert compiler.starts == 1
    compiled = {name for name, variants in compiler.variants().items() if True in variants}
    assert compiled
    assert not any(name.startswith("(") for name in compiled)
    assert "at 128x64" not in notices(engine)[-1].text


def test_a_request_keeps_its_blocks_from_its_first_seat_on() -> None:
    """Its third image gets a seat after the switch."""
    engine = Engine(max_running=2)
    engine.add(request("running", images=3), request("waiting", images=2, submitted=1.0))
    engine.step()
    engine.scheduler.use_compiled_blocks()
    states = engine.scheduler._requests
    running, waiting = states["running"], states["waiting"]
    engine.run()
    assert (running.is_compiled, waiting.is_compiled) == (False, True)


def test_the_log_says_what_it_gave() -> None:
    compiler = Compiler(share=0.5)
    engine = compiler.engine()
    serve(engine, 12)
    (notice,) = notices(engine)
    assert notice.level == logging.INFO
    assert notice.text.startswith("compiled blocks are 2.00 times as fast (2.00x at 64x64")
    assert notice.text.endswith("new requests use them")


@pytest.mark.parametrize("share", [1.0, 0.98, 1.5])
def test_plain_blocks_stay_unless_compiled_ones_win(share: float) -> None:
    compiler = Compiler(share)
    engine = compiler.engine()
    serve(engine, 30)
    assert {is_compiled for each in compiler.variants().values() for is_compiled in each} == {False}
    assert [each.text.rpartition(": ")[2] for each in notices(engine)] == ["plain blocks stay"]


@pytest.mark.parametrize(
    "faults", [{"fault": RuntimeError("g++ failed")}, {"load_fault": RuntimeError("g++ failed")}]
)
def test_a_failure_is_one_warning_and_plain_blocks_stay(faults: dict[str, Any]) -> None:
    compiler = Compiler(**faults)
    engine = compiler.engine()
    serve(engine, 30)
    (notice,) = notices(engine)
    assert notice.level == logging.WARNING
    assert notice.text == "compiling the blocks failed, plain blocks stay: g++ failed"
    assert compiler.starts == 1
    assert len(engine.of(RequestDone)) == 30
    assert not engine.of(RequestFailed)


def test_serving_goes_on_while_the_compiler_runs() -> None:
    compiler = Compiler(is_done=False)
    engine = compiler.engine()
    serve(engine, 30)
    assert compiler.starts == 1
    assert not compiler.loads
    compiler.is_done = True
    serve(engine, 10)
    assert notices(engine)


def test_loading_takes_at_most_half_of_the_time_while_there_are_requests() -> None:
    compiler = Compiler()
    engine = compiler.engine()
    serve(engine, 60)
    first, second, third = compiler.loads
    assert second - first >= 2 * PIECE_SECONDS
    assert third - second >= 2 * PIECE_SECONDS


def test_an_idle_worker_loads_without_pause() -> None:
    compiler = Compiler(is_done=False)
    engine = compiler.engine()
    serve(engine, 12)
    compiler.is_done = True
    engine.core.step()
    while engine.core.has_work:
        engine.core.step()
    assert len(compiler.loads) == 3
    assert notices(engine)


def test_no_request_is_blamed_for_a_worker_that_dies_while_loading() -> None:
    compiler = Compiler()
    engine = compiler.engine()
    serve(engine, 20)
    pieces = [each for each in engine.of(UnitStarted) if each.kind == "compile"]
    assert pieces
    assert all(each.request_ids == () and each.expected_seconds >= 3 for each in pieces)


def test_each_size_of_late_is_compared() -> None:
    compiler = Compiler()
    engine = compiler.engine(start_seconds=2.0)
    sizes: list[tuple[int, int]] = [(64, 64), (128, 64), (128, 128)]
    _interleave(engine, sizes)
    (notice,) = notices(engine)
    for width, height in sizes:
        assert f"2.00x at {width}x{height}" in notice.text


def _interleave(engine: Engine, sizes: list[tuple[int, int]]) -> None:
    done: Callable[[], object] = lambda: notices(engine)  # noqa: E731
    for number in range(200):
        if done():
            return
        for size in sizes:
            engine.add(request(f"{size}{number}", size=size))
            engine.run()
