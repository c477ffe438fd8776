"""API keys from a file that is read again when it changes.

    {"keys": [{"name": "web", "sha256": "<hex SHA-256 of the key>", "max_concurrency": 8,
               "priorities": ["interactive", "batch"], "may_disable": ["magic_prompt"]}]}

`key`, the key in plain text, can replace `sha256`. Names and keys are unique, and keys are not empty.
Requests without a valid key are refused; an empty list refuses all.
"""

import codecs
import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from starlette.datastructures import Headers

from engine.request import Priority
from server.schemas.errors import ApiError, invalid
from server.schemas.validation import first_problem
from server.settings.config_error import ConfigError
from server.settings.watched_file import WatchedFile

Disableable = Literal["magic_prompt", "moderation", "provenance"]
KEY = re.compile("[!-~]+")
# Digests of an unset shell variable, with and without `echo`.
BLANK = {hashlib.sha256(text).hexdigest() for text in (b"", b" ", b"\t", b"\n", b"\r", b"\r\n", b" \n")}


class KeyFileError(ConfigError):
    """The key file cannot be used. The message names the file, never a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The permissions of an API key. `max_concurrency` None is unlimited.

    The defaults are those of a server without keys: moderation and provenance cannot be turned off.
    """

    name: str = "anonymous"
    max_concurrency: int | None = None
    priorities: tuple[Priority, ...] = ("interactive", "batch")
    may_disable: tuple[Disableable, ...] = ("magic_prompt",)

    def priority(self, headers: Headers) -> Priority:
        """`X-Priority`, or else the first priority of the key. Raises ApiError 400 or 403."""
        wanted = headers.get("x-priority")
        for priority in self.priorities:
            if wanted in (None, priority):
                return priority
        if wanted not in ("interactive", "batch"):
            raise invalid("X-Priority must be `interactive` or `batch`.", "X-Priority")
        raise ApiError(403, "priority_not_allowed", "This key may not use that priority.", param="X-Priority")


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(min_length=1, max_length=64)
    key: SecretStr | None = None
    sha256: str | None = Field(None, pattern="^[0-9A-Fa-f]{64}$")
    max_concurrency: int | None = Field(None, ge=1)
    priorities: tuple[Priority, ...] = Field(("interactive", "batch"), min_length=1)
    may_disable: tuple[Disableable, ...] = ()

    @field_validator("key")
    @classmethod
    def _visible(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not KEY.fullmatch(key.get_secret_value()):
            raise ValueError("a key is one or more visible ASCII characters, without white space")
        return key

    @field_validator("sha256")
    @classmethod
    def _not_blank(cls, digest: str | None) -> str | None:
        if digest is not None and digest.lower() in BLANK:
            raise ValueError("the digest of an empty key")
        return digest

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
        if self.key is not None:
            return _digest(self.key.get_secret_value().encode())
        return bytes.fromhex(self.sha256 or "")


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[_Key]

    @model_validator(mode="after")
    def _unique(self) -> "_KeyFile":
        names: set[str] = set()
        owners: dict[bytes, str] = {}
        for key in self.keys:
            if key.name in names:
                raise ValueError(f"two entries have the name {key.name!r}")
            names.add(key.name)
            other = owners.setdefault(key.digest, key.name)
            if other != key.name:
                raise ValueError(f"{other!r} and {key.name!r} have the same key")
        return self


class Keys:
    """Authenticates requests; without a file every caller is `anonymous`."""

    def __init__(self, file: Path | None) -> None:
        """Raises KeyFileError."""
        self._callers = WatchedFile(file, _read, "API keys") if file is not None else None

    def authenticate(self, headers: Headers) -> Caller:
        """Raises ApiError 401."""
        if self._callers is None:
            return Caller()
        presented = _presented(headers)
        digest = _digest(presented)
        # Compares with every key, so that the time taken does not depend on which one matches.
        matches = [caller for known, caller in self._callers.value() if hmac.compare_digest(known, digest)]
        if not (presented and matches):
            raise ApiError(
                401, "invalid_api_key", "No valid API key was sent.", headers={"WWW-Authenticate": "Bearer"}
            )
        return matches[0]


def _presented(headers: Headers) -> bytes:
    """The bytes as sent: Starlette decodes headers as Latin-1."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token if scheme.lower() == "bearer" else headers.get("api-key", "")
    return key.encode("latin-1").strip()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _read(file: Path) -> list[tuple[bytes, Caller]]:
    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        entries = _KeyFile.model_validate_json(content).keys
    except OSError as error:
        raise KeyFileError(f"{file}: {error.strerror}") from None
    except ValidationError as error:
        raise KeyFileError(": ".join(filter(None, (str(file), *first_problem(error))))) from None
    return [(key.digest, key.caller) for key in entries]
