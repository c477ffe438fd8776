"""Reads tensors of safetensors files into memory or onto a device; several threads may read at once.

Files are read through the page cache, so that workers of one machine that load the same checkpoint read each
byte from the disk once. Read-ahead and several tensors at a time keep the disk busy.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from engine.config.files import unreadable
from engine.config.tensor_headers import TensorHeader
from engine.errors import CheckpointError

T = TypeVar("T")

IN_FLIGHT = 4  # tensors
PIECE_BYTES = 16 << 20  # small enough to be checked while the processor's cache holds most of it
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


def in_flight(task: Callable[[T], object], items: Iterable[T]) -> None:
    """Run `task` on each item, some at a time. Raises the error of the first item that fails."""
    is_inference = torch.is_inference_mode_enabled()  # of this thread

    def run(item: T) -> None:
        with torch.inference_mode(is_inference):
            task(item)

    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="load") as pool:
        running = [pool.submit(run, item) for item in items]
        try:
            for each in running:
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)


class TensorReader:
    """Keeps one staging buffer per thread, pinned if a tensor goes to a GPU."""

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, header: TensorHeader) -> Tensor:
        """A small tensor as it is stored, on the CPU."""
        stored = torch.empty(header.shape, dtype=DTYPES[header.dtype])
        with _opened(header.file) as stream:
            _read_into(stream, header.begin, stored.view(-1).view(torch.uint8), header.file)
        return stored

    def fill(self, header: TensorHeader, target: Tensor) -> Iterator[Tensor]:
        """Fill `target`, which is contiguous and has as many elements. Yields each piece once it is
        filled."""
        stored, flat = DTYPES[header.dtype], target.view(-1)
        step = PIECE_BYTES // stored.itemsize
        with _opened(header.file) as stream:
            for start in range(0, flat.numel(), step):
                piece = flat[start : start + step]
                at = header.begin + start * stored.itemsize
                if piece.device.type == "cpu" and piece.dtype == stored:
                    _read_into(stream, at, piece.view(torch.uint8), header.file)
                else:
                    self._read_staged(stream, at, piece, header)
                yield piece

    def _read_staged(self, stream: FileIO, at: int, piece: Tensor, header: TensorHeader) -> None:
        """Read into the buffer of this thread, and copy to the piece in its dtype."""
        stored = DTYPES[header.dtype]
        staged = self._staging(piece.is_cuda)[: piece.numel() * stored.itemsize]
        _read_into(stream, at, staged, header.file)
        piece.copy_(staged.view(stored), non_blocking=True)
        if piece.is_cuda:  # the buffer is used again
            torch.cuda.current_stream(piece.device).synchronize()

    def _staging(self, is_pinned: bool) -> Tensor:
        if not hasattr(self._local, "staging"):
            self._local.staging = torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=is_pinned)
        staging: Tensor = self._local.staging
        return staging


def _opened(file: Path) -> FileIO:
    try:
        stream = FileIO(file)
    except OSError as error:
        raise unreadable(file, error) from error
    if hasattr(os, "posix_fadvise"):  # reads further ahead
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return stream


def _read_into(stream: FileIO, at: int, target: Tensor, file: Path) -> None:
    """Fill the bytes of `target` from an offset of the file."""
    view = memoryview(target.numpy())  # type: ignore[arg-type]
    try:
        stream.seek(at)
        while view:
            count = stream.readinto(view)
            if not count:
                raise CheckpointError(f"{file}: ends early")
            view = view[count:]
    except OSError as error:
        raise unreadable(file, error) from error
