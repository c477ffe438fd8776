"""Requests wait for their adapters while others run; fakes stand in for the adapters in memory."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from engine.errors import AdapterFailedError, EngineError
from engine.messages import ImageDone, RequestFailed
from engine.request import AdapterUse, EngineRequest
from engine.worker.adapter_wait import AdapterWait
from tests.engine.fakes import Engine, request


@dataclass
class FakeAdapters:
    """`resident` ones are in memory; `blocked` ones wait for it, and `broken` ones cannot be loaded."""

    resident: set[str] = field(default_factory=set)
    blocked: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    updates: list[tuple[list[str], set[str]]] = field(default_factory=list)

    def fileno(self) -> int:
        return 0

    def update(self, wanted: Sequence[AdapterUse], in_use: Collection[str]) -> None:
        self.updates.append(([use.digest for use in wanted], set(in_use)))

    def is_resident(self, digest: str) -> bool:
        return digest in self.resident

    def waits_for_memory(self, uses: Sequence[AdapterUse]) -> bool:
        return any(use.digest in self.blocked for use in uses)

    def error(self, uses: Sequence[AdapterUse]) -> EngineError | None:
        broken = [use.name for use in uses if use.digest in self.broken]
        return AdapterFailedError(broken[0]) if broken else None


class Waiting:
    def __init__(self) -> None:
        self.engine, self.adapters = Engine(), FakeAdapters()
        scheduler = self.engine.scheduler
        self.core = AdapterWait(
            self.engine.core, self.adapters, lambda: scheduler.adapters_in_use, self.engine.sent.append
        )

    def run(self) -> list[str]:
        """Run until nothing is left, and return the requests whose images are done, in order."""
        self.core.step()
        while self.core.has_work:
            self.core.step()
        return self.engine.ids(ImageDone)


def using(request_id: str, *digests: str) -> EngineRequest:
    uses = tuple(AdapterUse(digest, "", digest, 1.0) for digest in digests)
    return replace(request(request_id), adapters=uses)


def test_a_request_waits_for_all_its_adapters_while_others_run() -> None:
    waiting = Waiting()
    waiting.adapters.resident = {"a"}
    for each in (using("both", "a", "b"), using("one", "a"), request("none")):
        waiting.core.add(each)
    assert waiting.run() == ["one", "none"]
    assert not waiting.core.has_work
    waiting.adapters.resident |= {"b"}
    assert waiting.run() == ["one", "none", "both"]


def test_adapters_of_requests_in_the_engine_are_in_use() -> None:
    waiting = Waiting()
    waiting.adapters.resident = {"a"}
    waiting.core.add(using("runs", "a"))
    waiting.core.add(using("waits", "b", "c"))
    assert waiting.adapters.updates[-1] == (["b", "c"], {"a"})
    waiting.run()
    waiting.core.step()
    assert waiting.adapters.updates[-1] == (["b", "c"], set())


def test_requests_do_not_overtake_one_that_waits_for_memory() -> None:
    waiting = Waiting()
    waiting.adapters.resident, waiting.adapters.blocked = {"a"}, {"b"}
    for each in (using("waits", "b"), using("later", "a"), request("none")):
        waiting.core.add(each)
    assert waiting.run() == ["none"]
    waiting.adapters.resident, waiting.adapters.blocked = {"a", "b"}, set()
    assert waiting.run() == ["none", "waits", "later"]


def test_memory_that_a_request_frees_at_its_end_is_taken_at_once() -> None:
    """No message follows that would wake the worker."""
    waiting = Waiting()
    waiting.adapters.resident, waiting.adapters.blocked = {"a"}, {"b"}
    for each in (using("runs", "a"), using("waits", "b")):
        waiting.core.add(each)
    assert waiting.run() == ["runs"]
    assert waiting.adapters.updates[-1] == (["b"], set())


def test_only_the_request_of_a_broken_adapter_fails() -> None:
    waiting = Waiting()
    waiting.adapters.resident, waiting.adapters.broken = {"a"}, {"b"}
    for each in (using("broken", "a", "b"), using("whole", "a")):
        waiting.core.add(each)
    assert waiting.run() == ["whole"]
    (failed,) = waiting.engine.of(RequestFailed)
    assert (failed.request_id, type(failed.error), str(failed.error)) == ("broken", AdapterFailedError, "b")


def test_an_aborted_request_is_forgotten_and_a_promoted_one_keeps_its_priority() -> None:
    waiting = Waiting()
    for name in ("gone", "kept"):
        waiting.core.add(replace(using(name, "a"), priority="batch"))
    waiting.core.abort("gone")
    waiting.core.promote("kept", "interactive")
    waiting.adapters.resident = {"a"}
    waiting.core.step()
    assert waiting.engine.scheduler._requests["kept"].priority == "interactive"
    assert waiting.run() == ["kept"]
