"""Reads the small files of a checkpoint. Every error names the file and the key. Torch-free."""

import json
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from engine.errors import CheckpointError

T = TypeVar("T")

# The largest published one, tokenizer.json, has 11 MiB.
MAX_BYTES = 64 << 20
_SHOWN_CHARACTERS = 60


def list_files(folder: Path, suffix: str) -> list[Path]:
    """The folder's files whose names end in `suffix`, sorted by name; none if there is no such folder.

    Hidden files are skipped: macOS leaves `._model.safetensors` beside `model.safetensors`.
    """
    return sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))


def require_file(file: Path) -> int:
    """Return the size in bytes. Raises CheckpointError unless `file` is a regular file or a link to one."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise unreadable(file, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file}: not a regular file")
    return status.st_size


def read_bytes(file: Path) -> bytes:
    """Read a file of at most MAX_BYTES. Raises CheckpointError."""
    if require_file(file) > MAX_BYTES:
        raise CheckpointError(f"{file}: larger than {MAX_BYTES >> 20} MiB")
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


def read_text(file: Path) -> str:
    """Read a UTF-8 file. Raises CheckpointError."""
    try:
        return read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: not UTF-8: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError."""
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: must be a JSON object")
    return value


def read_as(kind: type[T], file: Path) -> T:
    """Validate a JSON file as `kind`, with strict types. Raises CheckpointError for the first invalid key."""
    try:
        return TypeAdapter(kind).validate_json(read_bytes(file), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{file}: {_first_problem(error)}") from error


def unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: {getattr(error, 'strerror', None) or error}")


def _first_problem(error: ValidationError) -> str:
    """Format the first error as `key: message, not value`."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    if problem["type"] not in ("value_error", "json_invalid") and isinstance(value, str | int | float | None):
        message += f", not {str(value)[:_SHOWN_CHARACTERS]}"
    return f"{key}: {message}" if key else message
