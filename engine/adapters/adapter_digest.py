"""Reads an adapter's file once, for its digest and for values that are not finite. Torch-free."""

import hashlib
from collections.abc import Mapping

import numpy as np

from engine.adapters.adapter_file import AdapterFile
from engine.adapters.adapter_header import AdapterError, Header
from engine.config.files import unreadable

# How a type is stored, and the bits of its exponent: all are set in NaN and infinity.
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
}


def digest(header: Header, file: AdapterFile) -> str:
    """The SHA-256 of the file, in hex. Holds one tensor in memory at a time.

    Raises AdapterError if the file cannot be read, or a tensor of an update has NaN or infinity.
    """
    used = {key for update in file.updates.values() for key in update.keys}
    try:
        with header.path.open("rb") as stream:
            hashed = hashlib.sha256(stream.read(header.data_begin))
            for key, tensor in header.in_file_order():
                begin, end = tensor.data_offsets
                data = stream.read(end - begin)
                hashed.update(data)
                if key in used and not _is_finite(data, tensor.dtype):
                    raise header.error(key, "NaN or infinity")
    except OSError as error:
        raise AdapterError(str(unreadable(header.path, error))) from error
    return hashed.hexdigest()


def _is_finite(data: bytes, dtype: str) -> bool:
    kind, exponent = _EXPONENTS[dtype]
    whole = len(data) - len(data) % np.dtype(kind).itemsize  # the file may have become shorter
    return not np.any((np.frombuffer(data[:whole], kind) & exponent) == exponent)
