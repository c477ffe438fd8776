"""What an operator says about adapters: a folder of them, or a JSON file that lists them."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, model_validator

from engine.config.files import read_as, unreadable
from engine.config.model_config import DeclaredPreset
from engine.errors import CheckpointError
from server.hub.repository import SCHEME
from server.schemas.images import MAX_ADAPTER_SCALE

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SUFFIX = ".safetensors"
SETTINGS_FILE = "ideoserve.json"

Text = Annotated[str, Field(min_length=1, max_length=200)]


class AdapterSettings(BaseModel, extra="forbid", strict=True, frozen=True):
    """The contents of the `ideoserve.json` of an adapter.

    `scale` is that of requests that name none, and `preset` replaces the default preset of the model. `keys`
    are the names of the API keys that may use the adapter; None: all. `trigger_words` replace those of the
    file.
    """

    scale: Annotated[float, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE, allow_inf_nan=False)] = 1.0
    preset: DeclaredPreset | None = None
    keys: list[Text] | None = None
    trigger_words: Annotated[list[Text], Field(max_length=100)] | None = None


def _inside(file: str) -> str:
    path = PurePath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file!r} leads out of `source`")
    return file


class _Entry(AdapterSettings, frozen=True):
    """An entry of the adapters file. `source` is a file or folder, relative to the adapters file, or
    `hf://owner/name[@revision]`; `file` selects one of its safetensors files."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    source: Annotated[str, Field(min_length=1)]
    file: Annotated[str, Field(min_length=1), AfterValidator(_inside)] | None = None


class _AdaptersFile(BaseModel, extra="forbid", strict=True):
    adapters: list[_Entry]

    @model_validator(mode="after")
    def _unique(self) -> "_AdaptersFile":
        counted = Counter(entry.name for entry in self.adapters)
        if doubled := [name for name, number in counted.items() if number > 1]:
            raise ValueError(f"two entries have the name {doubled[0]!r}")
        return self


@dataclass(frozen=True, slots=True)
class Declaration:
    """An adapter by its name. `source` is a file, a folder, or `hf://owner/name[@revision]`.

    `settings` take precedence over those in the folder. `file` selects one of several safetensors files.
    Files outside of `root`, if it is given, are refused. `error` says why the adapter cannot be used.
    """

    name: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    error: str | None = None
    root: Path | None = None


def declarations(source: Path) -> list[Declaration]:
    """The adapters of a folder or of an adapters file, sorted by name. Raises CheckpointError if it cannot be
    read."""
    declared = _in_folder(source) if os.path.isdir(source) else _in_file(source)
    return sorted(declared, key=lambda each: each.name)


def _in_file(file: Path) -> Iterator[Declaration]:
    for entry in read_as(_AdaptersFile, file).adapters:
        is_hub = entry.source.startswith(SCHEME)
        source = entry.source if is_hub else str(file.parent / entry.source)
        names = AdapterSettings.model_fields.keys() & entry.model_fields_set
        settings = {name: getattr(entry, name) for name in names}
        yield Declaration(entry.name, source, settings, entry.file)


def _in_folder(folder: Path) -> Iterator[Declaration]:
    found: dict[str, list[Path]] = {}
    for path in _candidates(folder):
        found.setdefault(_shown(path).removesuffix(SUFFIX), []).append(path)
    for name, paths in found.items():
        yield Declaration(name, str(paths[0]), error=_problem(name, paths), root=folder)


def _candidates(folder: Path) -> list[Path]:
    """The safetensors files in a folder, and its folders that have some, in the order of their names."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from None
    return [path for path in paths if path.name.endswith(SUFFIX) or _is_adapter(path)]


def _is_adapter(path: Path) -> bool:
    """Whether it is a folder with weights. One that cannot be read and is named as an adapter is listed with
    the error; `lost+found` is not."""
    try:
        return bool(weights_in(path))
    except CheckpointError:
        return NAME.fullmatch(path.name) is not None


def weights_in(folder: Path) -> list[Path]:
    """The safetensors files in a folder, sorted; none if there is no such folder. Raises CheckpointError."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return [folder / name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]


def _problem(name: str, paths: list[Path]) -> str | None:
    if len(paths) > 1:
        return f"{' and '.join(map(_shown, paths))} have the same name"
    if not NAME.fullmatch(name):
        rule = "1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or digit"
        return f"{_shown(paths[0])}: an adapter is named by {rule}"
    return None


def _shown(path: Path) -> str:
    """The name of a file, with replacement characters for what is not UTF-8."""
    return os.fsencode(path.name).decode("utf-8", "replace")
