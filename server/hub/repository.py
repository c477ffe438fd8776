"""Recognizes a repository of the Hugging Face Hub in `--model`."""

import os
import re
from dataclasses import dataclass

from engine.errors import CheckpointError
from server.settings.config_error import ConfigError

SCHEME = "hf://"
_REPOSITORY = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@(\S+))?", re.ASCII)


class HubUnavailableError(CheckpointError):
    """A download failed, for a reason that may be gone when it is tried again."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository `owner/name` at a branch, tag or commit, or at its default branch."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, model: str, flag: str = "--model") -> "Repository | None":
        """Parse `owner/name[@revision]`, with or without `hf://`; None for the path of a folder.

        Without `hf://` a folder of that name takes precedence, and so does a folder `owner`. Raises
        ConfigError if nothing but a repository follows `hf://`.
        """
        found = _REPOSITORY.fullmatch(model.removeprefix(SCHEME))
        if model.startswith(SCHEME):
            if not found:
                raise ConfigError(f"{flag} {model}: must be {SCHEME}owner/name[@revision]")
        # `os.path.exists` is False where `Path.exists` raises: for a name that is too long, say.
        elif not found or os.path.exists(model) or os.path.exists(model.partition("/")[0]):
            return None
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name
