"""Holds requests back until their adapters are in memory, while others run. Torch-free."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from engine.errors import EngineError
from engine.messages import FromWorker
from engine.request import AdapterUse, EngineRequest, Priority
from engine.worker.failures import failure

if TYPE_CHECKING:
    from engine.compilation.compilation import Compilation


class Adapters(Protocol):
    """The adapters in memory. `fileno` is readable when `update` has something to do."""

    def fileno(self) -> int: ...
    def update(self, wanted: Sequence[AdapterUse], in_use: Collection[str]) -> None: ...
    def is_resident(self, digest: str) -> bool: ...
    def waits_for_memory(self, uses: Sequence[AdapterUse]) -> bool: ...
    def error(self, uses: Sequence[AdapterUse]) -> EngineError | None: ...


class Core(Protocol):
    """What `EngineCore` does for the step loop."""

    @property
    def compilation(self) -> "Compilation | None": ...
    @property
    def has_work(self) -> bool: ...
    def add(self, request: EngineRequest) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def promote(self, request_id: str, priority: Priority) -> None: ...
    def step(self) -> None: ...


class AdapterWait:
    """A core that gets each request once its adapters are in memory.

    Behind a request that waits for memory all with adapters wait: they would keep it occupied. `in_use` are
    the digests of adapters that must stay in memory. A request whose adapters cannot be loaded fails.
    """

    def __init__(
        self,
        core: Core,
        adapters: Adapters,
        in_use: Callable[[], set[str]],
        emit: Callable[[FromWorker], None],
    ) -> None:
        self._core = core
        self._adapters = adapters
        self._in_use = in_use
        self._emit = emit
        self._waiting: list[EngineRequest] = []

    @property
    def compilation(self) -> "Compilation | None":
        return self._core.compilation

    @property
    def has_work(self) -> bool:
        return self._core.has_work

    def fileno(self) -> int:
        """Readable when something is loaded: call `step`."""
        return self._adapters.fileno()

    def add(self, request: EngineRequest) -> None:
        """Queue a request, or hold it back."""
        if request.adapters:
            self._waiting.append(request)
            self._advance()
        else:
            self._core.add(request)

    def abort(self, request_id: str) -> None:
        """As `EngineCore.abort`."""
        self._waiting = [each for each in self._waiting if each.request_id != request_id]
        self._core.abort(request_id)

    def promote(self, request_id: str, priority: Priority) -> None:
        """As `EngineCore.promote`."""
        self._waiting = [
            replace(each, priority=priority) if each.request_id == request_id else each
            for each in self._waiting
        ]
        self._core.promote(request_id, priority)

    def step(self) -> None:
        """Pass on what is loaded, then run one unit of work, if there is any."""
        self._advance()
        self._core.step()
        if self._waiting and not self._core.has_work:
            self._advance()  # what has ended may have freed memory, and no message may follow

    def _advance(self) -> None:
        wanted = [use for request in self._waiting for use in request.adapters]
        self._adapters.update(wanted, self._in_use() if wanted else ())
        waiting, self._waiting = self._waiting, []
        while waiting:
            request = waiting.pop(0)
            if not self._pass(request):
                self._waiting.append(request)
            if self._adapters.waits_for_memory(request.adapters):
                break
        self._waiting += waiting

    def _pass(self, request: EngineRequest) -> bool:
        """Pass the request on, or fail it. Returns False if it has to wait."""
        error = self._adapters.error(request.adapters)
        if error is not None:
            self._emit(failure(request, error))
        elif all(self._adapters.is_resident(use.digest) for use in request.adapters):
            self._core.add(request)
        else:
            return False
        return True
