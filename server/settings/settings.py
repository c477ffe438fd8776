"""The server's settings: each field is the flag `--name` and the environment variable `IDEOSERVE_NAME`."""

import re
from collections.abc import Sequence

from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.settings import flags
from server.settings.engine_settings import EngineSettings
from server.settings.http_settings import HttpSettings
from server.settings.integration_settings import IntegrationSettings
from server.settings.queue_settings import QueueSettings

# What a browser sends as `Origin`; `null` is that of a local file.
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#*A-Z]+")
BASE_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")

PIN = re.compile(r"[\w.]+=\w+")


class Settings(QueueSettings, IntegrationSettings, HttpSettings, EngineSettings, BaseSettings):
    """All settings, in the order of the bases from the last to the first."""

    model_config = SettingsConfigDict(
        env_prefix="IDEOSERVE_", frozen=True, extra="forbid", protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and not value.strip() and info.field_name != "hive_ignore":
            raise ValueError("the value is empty; leave it out instead")
        return value

    @field_validator("max_inflight_body_bytes")
    @classmethod
    def _holds_the_largest_body(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("max_body_bytes", 0):
            raise ValueError("must be at least max_body_bytes")
        return value

    @field_validator("max_inflight_upload_bytes")
    @classmethod
    def _holds_the_largest_upload(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("max_upload_bytes", 0):
            raise ValueError("must be at least max_upload_bytes")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: str | None) -> str | None:
        for origin in _items(value):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is not an origin: scheme://host[:port], in lower case, or *")
        return value

    @field_validator("public_url")
    @classmethod
    def _is_base_url(cls, value: str | None) -> str | None:
        if value is not None and not BASE_URL.fullmatch(value):
            raise ValueError("must be http(s)://host[:port][/path], without a query or fragment")
        return value

    @field_validator("kernels")
    @classmethod
    def _are_pins(cls, value: str | None) -> str | None:
        for pin in _items(value):
            if not PIN.fullmatch(pin):
                raise ValueError(f"{pin} is not NAME=CANDIDATE")
        return value

    @property
    def kernel_pins(self) -> tuple[tuple[str, str], ...]:
        """The name and the candidate of each pin."""
        pairs = (pin.partition("=") for pin in _items(self.kernels))
        return tuple((name, candidate) for name, _, candidate in pairs)

    @property
    def device_list(self) -> tuple[str, ...]:
        """One device per replica; empty if the engine selects it."""
        return _items(self.devices or self.device)

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        """Patterns of keys in the files of adapters."""
        return _items(self.adapter_ignore)

    @property
    def model_aliases(self) -> tuple[str, ...]:
        """Model ids that requests may use besides the served one."""
        return _items(self.model_alias)

    @property
    def webhook_host_list(self) -> tuple[str, ...]:
        return _items(self.webhook_hosts)

    @property
    def cors_origin_list(self) -> tuple[str, ...]:
        return _items(self.cors_origins)


def _items(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated list."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def read_settings(argv: Sequence[str]) -> Settings:
    """Flags override environment variables, which override defaults.

    An invalid value ends the process with exit code 2 and one line on stderr.
    """
    parser = flags.parser(Settings.model_fields)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        parser.exit(2, f"ideoserve: {flags.explain(error.errors()[0], given)}\n")
