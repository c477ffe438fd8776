"""The adapters in memory: loaded beside the steps, least recently used out."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from engine.adapters.adapter import Adapter, pinned, sent
from engine.adapters.adapter_file import Configs, both_configs
from engine.adapters.adapter_header import AdapterError
from engine.adapters.adapter_keys import Part
from engine.adapters.loading import failure, load_adapter
from engine.checkpoint.loader import Pipeline
from engine.config.options import EngineOptions
from engine.errors import AdaptersTooLargeError, EngineError, OptionError
from engine.request import AdapterUse

# Adapters that are read, or wait for memory, at a time.
_AHEAD = 2
# Bytes of pinned copies in the host's memory, relative to those of a CUDA device.
_HOST_SHARE = 4


class AdapterStore:
    """Holds at most `max_bytes` of adapters on the devices of the transformers, by digest.

    Files are read in a thread, and on CUDA copied by it; `fileno` is readable when it has finished something.
    On CUDA, copies stay in pinned memory of the host, up to `_HOST_SHARE` times the bytes.
    """

    def __init__(
        self,
        configs: Configs,
        devices: Mapping[Part, torch.device],
        dtype: torch.dtype,
        max_bytes: int,
        ignore: Sequence[str] = (),
    ) -> None:
        self.max_bytes = max_bytes
        self._configs, self._devices, self._dtype, self._ignore = configs, devices, dtype, tuple(ignore)
        self._is_host = all(device.type == "cpu" for device in devices.values())
        self._thread = ThreadPoolExecutor(1, "adapters")
        self._reading: dict[str, Future[Adapter]] = {}
        self._read: dict[str, Adapter] = {}  # wait for memory on the device
        self._errors: dict[str, Exception] = {}
        self._resident: OrderedDict[str, tuple[int, Future[Adapter]]] = OrderedDict()
        self._host = _Recent(0 if self._is_host else _HOST_SHARE * max_bytes)
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)

    @classmethod
    def of(cls, pipeline: Pipeline, options: EngineOptions) -> "AdapterStore":
        """A store for the transformers of a model."""
        conditional, unconditional = pipeline.conditional, pipeline.unconditional
        return cls(
            both_configs(conditional.config, unconditional.config),
            {"conditional": conditional.device, "unconditional": unconditional.device},
            conditional.dtype,
            int(options.adapter_memory_gb * 1e9),
            options.adapter_ignore,
        )

    def fileno(self) -> int:
        return self._wake

    def load(self, path: str) -> Adapter:
        """Load an adapter that stays in memory beside those of requests. Raises OptionError."""
        try:
            adapter = load_adapter(Path(path), self._configs, self._dtype, self._ignore)
        except AdapterError as error:
            raise OptionError(f"--uncond-adapter: {error}") from error
        return adapter if self._is_host else sent(adapter, self._devices)

    def __getitem__(self, digest: str) -> Adapter:
        """A resident adapter."""
        self._resident.move_to_end(digest)
        return self._resident[digest][1].result()

    def is_resident(self, digest: str) -> bool:
        return digest in self._resident and self._resident[digest][1].done()

    def waits_for_memory(self, uses: Sequence[AdapterUse]) -> bool:
        """Whether an adapter of these was read, and the memory is taken by others that are in use."""
        return any(use.digest in self._read for use in uses)

    def error(self, uses: Sequence[AdapterUse]) -> EngineError | None:
        """Why these adapters of one request cannot be loaded, if they cannot."""
        for use in uses:
            if use.digest in self._errors:
                return failure(use, self._errors[use.digest])
        sizes = [self._size(digest) for digest in {use.digest for use in uses}]
        needed = sum(size for size in sizes if size is not None)
        if needed <= self.max_bytes:
            return None
        names = ", ".join(f"`{use.name}`" for use in uses)
        bound = "at least " if None in sizes else ""
        limit = f"at most {self.max_bytes} (--adapter-memory-gb)"
        return AdaptersTooLargeError(f"The adapters {names} take {bound}{needed} bytes of memory; {limit}")

    def update(self, wanted: Sequence[AdapterUse], in_use: Collection[str]) -> None:
        """Load the adapters that requests wait for, in their order, and drop what none waits for.

        Adapters `in_use`, and those wanted before another, do not leave for it.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 1024)
        paths = {use.digest: use.path for use in wanted}
        self._collect(paths)
        self._place(list(paths), in_use)
        missing = [digest for digest in paths if not self._is_known(digest)]
        for digest in missing[: max(0, _AHEAD - len(self._reading) - len(self._read))]:
            self._start(digest, Path(paths[digest]))

    def _is_known(self, digest: str) -> bool:
        return any(digest in held for held in (self._reading, self._read, self._errors, self._resident))

    def _start(self, digest: str, path: Path) -> None:
        if (copied := self._host.get(digest)) is not None:
            self._read[digest] = copied
            self._notify()
            return
        self._reading[digest] = self._submit(partial(self._load, path, digest))

    def _load(self, path: Path, digest: str) -> Adapter:
        adapter = load_adapter(path, self._configs, self._dtype, self._ignore, digest)
        return adapter if self._is_host else pinned(adapter)

    def _collect(self, wanted: Iterable[str]) -> None:
        """Take what the thread has finished."""
        finished = [(digest, future) for digest, future in self._reading.items() if future.done()]
        for digest, future in finished:
            del self._reading[digest]
            if (error := future.exception()) is None:
                self._read[digest] = future.result()
                self._host.put(digest, future.result())
            else:
                self._errors[digest] = error if isinstance(error, Exception) else RuntimeError(str(error))
        for digest, (_, future) in list(self._resident.items()):
            if future.done() and isinstance(error := future.exception(), Exception):
                del self._resident[digest]
                self._errors[digest] = error
        for held in (self._read, self._errors):
            for digest in held.keys() - set(wanted):
                del held[digest]

    def _place(self, wanted: Sequence[str], in_use: Collection[str]) -> None:
        """Copy adapters to the device in order, until one has to wait for memory."""
        protected = set(in_use)
        for digest in wanted:
            protected.add(digest)
            if digest not in self._read:
                continue
            if not self._make_room(self._read[digest].nbytes, protected):
                return
            adapter = self._read.pop(digest)
            self._resident[digest] = adapter.nbytes, self._send(adapter)

    def _make_room(self, needed: int, protected: Collection[str]) -> bool:
        """Let the least recently used adapters leave. None leaves if that is not enough."""
        free = self.max_bytes - sum(size for size, _ in self._resident.values())
        leaving = []
        for digest, (size, _) in self._resident.items():
            if free >= needed:
                break
            if digest not in protected:
                leaving.append(digest)
                free += size
        if free < needed:
            return False
        for digest in leaving:
            del self._resident[digest]
        return True

    def _send(self, adapter: Adapter) -> Future[Adapter]:
        if not self._is_host:
            return self._submit(partial(sent, adapter, self._devices))
        there: Future[Adapter] = Future()
        there.set_result(adapter)
        return there

    def _submit(self, work: Callable[[], Adapter]) -> Future[Adapter]:
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._notify())
        return future

    def _notify(self) -> None:
        os.write(self._waker, b"x")

    def _size(self, digest: str) -> int | None:
        """Bytes; None if the adapter is not loaded."""
        if digest in self._resident:
            return self._resident[digest][0]
        return self._read[digest].nbytes if digest in self._read else None


class _Recent:
    """Adapters by digest, bounded in bytes, least recently used out."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._held: OrderedDict[str, Adapter] = OrderedDict()

    def get(self, digest: str) -> Adapter | None:
        if digest in self._held:
            self._held.move_to_end(digest)
        return self._held.get(digest)

    def put(self, digest: str, adapter: Adapter) -> None:
        self._held[digest] = adapter
        self._left -= adapter.nbytes
        while self._left < 0:
            self._left += self._held.popitem(last=False)[1].nbytes
