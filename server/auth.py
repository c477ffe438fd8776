"""API keys from a file that may change while the server runs.

    {"keys": [{"name": "web", "sha256": "<hex of the key's SHA-256>", "max_concurrency": 8,
               "priorities": ["interactive", "batch"], "may_disable": ["magic_prompt"]}]}

`key` with the key itself may stand for `sha256`.
"""

import hashlib
import hmac
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from starlette.datastructures import Headers

from engine.messages import Priority
from server.config_error import ConfigError
from server.errors import ApiError, invalid

Disableable = Literal["magic_prompt", "moderation", "provenance"]
logger = logging.getLogger(__name__)


class KeyFileError(ConfigError):
    """A key file that cannot be used; the message names it, never a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key's name, how many requests it may have in flight (None: any), its priorities, and
    what its requests may turn off. Without keys nothing that protects can be turned off."""

    name: str = "anonymous"
    max_concurrency: int | None = None
    priorities: tuple[Priority, ...] = ("interactive", "batch")
    may_disable: tuple[Disableable, ...] = ("magic_prompt",)

    def priority(self, headers: Headers) -> Priority:
        """`X-Priority`, or the first that this key has."""
        wanted = headers.get("x-priority")
        for priority in self.priorities:
            if wanted in (None, priority):
                return priority
        if wanted not in ("interactive", "batch"):
            raise invalid("X-Priority is `interactive` or `batch`.", "X-Priority")
        raise ApiError(403, "priority_not_allowed", "This key may not use that priority.", param="X-Priority")


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64)
    key: SecretStr | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    max_concurrency: int | None = Field(None, ge=1)
    priorities: tuple[Priority, ...] = Field(("interactive", "batch"), min_length=1)
    may_disable: tuple[Disableable, ...] = ()

    @model_validator(mode="after")
    def _one_secret(self) -> "_Key":
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("exactly one of key and sha256 is needed")
        return self

    @property
    def caller(self) -> Caller:
        return Caller(self.name, self.max_concurrency, self.priorities, self.may_disable)

    @property
    def digest(self) -> bytes:
        return (
            bytes.fromhex(self.sha256)
            if self.sha256
            else _digest(self.key.get_secret_value() if self.key else "")
        )


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[_Key]


class Keys:
    """The callers this server knows; without a file everybody is `anonymous`."""

    def __init__(self, file: Path | None) -> None:
        """Raises KeyFileError."""
        self._file = file
        self._version: object = None
        self._callers: list[tuple[bytes, Caller]] = []
        if file is not None:
            self._version = _version(file)
            self._callers = _read(file)

    def authenticate(self, headers: Headers) -> Caller:
        """Raises ApiError 401."""
        if self._file is None:
            return Caller()
        self._reload(self._file)
        presented = _digest(_presented(headers))
        # Every key is compared, so that the time taken tells nothing of which one was close.
        matches = [caller for digest, caller in self._callers if hmac.compare_digest(digest, presented)]
        if not matches:
            raise ApiError(
                401, "invalid_api_key", "No valid API key was sent.", headers={"WWW-Authenticate": "Bearer"}
            )
        return matches[0]

    def _reload(self, file: Path) -> None:
        try:
            version = _version(file)
            if version == self._version:
                return
            self._version = version
            self._callers = _read(file)
            logger.info("API keys read again: %d", len(self._callers))
        except KeyFileError as error:
            logger.error("the API keys stay as they were: %s", error)


def _presented(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _version(file: Path) -> object:
    try:
        status = file.stat()
    except OSError as error:
        return str(error)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> list[tuple[bytes, Caller]]:
    try:
        entries = _KeyFile.model_validate_json(file.read_bytes()).keys
    except OSError as error:
        raise KeyFileError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise KeyFileError(f"{file}: {place}: {first['msg']}") from None
    return [(key.digest, key.caller) for key in entries]
