"""Keeps choices on disk, so that a restart measures nothing and makes the same images."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Choices = dict[str, str]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """Choices by name, and their gains: 0.25 means that the default takes a quarter longer."""

    choices: Choices
    gains: dict[str, float]


class ChoiceStore:
    """One JSON file per key in `folder`; without a folder, or if it is not writable, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def recall(
        self, key: Mapping[str, object], names: Mapping[str, list[str]], measure: Callable[[], Measured]
    ) -> tuple[Measured, bool]:
        """What was measured before with this key, and True; else what `measure` returns, and False.

        `names` are the valid choices. Processes that share the folder measure one after the other, so that
        they choose alike and do not disturb each other.
        """
        text = json.dumps(key, sort_keys=True, default=str)
        file = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        with self._locked() as folder:
            kept = _read(folder / file, names) if folder else None
            if kept:
                return kept, True
            measured = measure()
            if folder:
                _write(folder / file, {"key": key, "choices": measured.choices, "gains": measured.gains})
            return measured, False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Path | None]:
        """The folder, locked until the end; None if there is none to use."""
        with contextlib.ExitStack() as stack:
            folder = self._folder
            try:
                if folder:
                    folder.mkdir(parents=True, exist_ok=True)
                    lock = stack.enter_context((folder / "lock").open("w"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                logger.warning("kernel choices are not kept and will be measured at every start: %s", error)
                folder = None
            yield folder


def _read(file: Path, names: Mapping[str, list[str]]) -> Measured | None:
    """What the file holds if it is one valid choice for each name, else None."""
    try:
        held = json.loads(file.read_text("utf-8"))
        choices, gains = held["choices"], held["gains"]
        is_valid = choices.keys() == gains.keys() == names.keys() and all(
            choices[name] in valid and isinstance(gains[name], float) for name, valid in names.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Measured(choices, gains) if is_valid else None


def _write(file: Path, held: Mapping[str, object]) -> None:
    """Replace the file as a whole."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as stream:
            json.dump(held, stream, indent=1, default=str)
        os.replace(stream.name, file)
    except OSError as error:
        logger.warning("kernel choices are not kept and will be measured at every start: %s", error)
