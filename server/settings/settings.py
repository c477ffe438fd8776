"""The one reader of flags and environment: every field is `--name` and `IDEOSERVE_NAME`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.settings import flags

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What an operator may set. Limits of a request come from the checkpoint, not from here."""

    model_config = SettingsConfigDict(
        env_prefix="IDEOSERVE_", frozen=True, extra="forbid", protected_namespaces=()
    )

    model: str = Field(description="checkpoint folder, or a Hugging Face repository id")
    model_name: str | None = Field(
        None, description="name served under /v1/models; the checkpoint's own if unset"
    )
    model_alias: str | None = Field(
        None, description="comma-separated model ids that requests may also use, such as dall-e-3,gpt-image-1"
    )
    size_policy: Literal["strict", "nearest"] = Field(
        "strict",
        description="image sizes that the model does not allow: refuse them (strict) or round to the nearest "
        "allowed size (nearest)",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one")

    device: Literal["cpu", "cuda"] | None = Field(
        None, description="where the model runs; cuda where there is one"
    )
    devices: str | None = Field(
        None, description="comma-separated devices, one replica each, such as cuda:0,cuda:1"
    )
    uncond_device: str | None = Field(
        None, description="device of the unconditional transformer, such as cuda:1"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="compute type; bfloat16 where the device has instructions for it, else float32; "
        "a CPU that has not computes in float32 whatever is asked",
    )
    compile: bool | None = Field(
        None,
        description="compile the transformers' blocks at start (on a CPU this needs a C++ compiler); "
        "on cuda alone if unset",
    )
    cuda_graphs: bool = Field(
        False,
        description="on cuda, replay passes of at most 1024 tokens from recordings, one for each "
        "length of prompt; pays where small images of the same prompts come again",
    )
    max_batch_size: int = Field(8, ge=1, le=64, description="most images denoised in one step")
    max_running: int = Field(
        64,
        ge=1,
        le=1024,
        description="most images in the device's memory at once; priority `batch` holds at most half of it",
    )

    api_keys_file: Path | None = Field(
        None, description="JSON file of API keys, read again when it changes; none: open"
    )
    max_n: int = Field(10, ge=1, le=10, description="most images of one request")
    max_request_seconds: Seconds = Field(300, description="longest deadline of a request, in seconds")
    max_backlog_seconds: Seconds = Field(
        120, description="most predicted work of one device; beyond it requests get 429, in seconds"
    )
    batch_backlog_share: float = Field(
        0.5, gt=0, le=1, description="share of max_backlog_seconds up to which priority `batch` is admitted"
    )

    max_body_bytes: int = Field(1 << 20, ge=1024, le=64 << 20, description="largest request body, in bytes")
    max_inflight_body_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="most memory for the bodies of requests that are being read, in bytes; at least "
        "max_body_bytes; the first 16 KiB of each are not counted",
    )
    body_timeout_seconds: Seconds = Field(10, description="longest time to receive a body, in seconds")
    header_timeout_seconds: Seconds = Field(
        20, description="longest time to the end of a request's headers, in seconds"
    )
    write_timeout_seconds: Seconds = Field(
        30, description="longest time that a client may not read, in seconds"
    )
    max_unsent_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        le=1 << 40,
        description="most memory for responses that clients read slowly, in bytes; above it the slowest "
        "are disconnected",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="most open connections; above it 503, but for probes and metrics",
    )
    max_header_bytes: int = Field(32 << 10, ge=1024, le=1 << 20, description="largest request head, in bytes")
    max_header_count: int = Field(100, ge=10, le=1000, description="most headers of a request")
    keep_alive_seconds: int = Field(
        75, ge=1, le=3600, description="idle keep-alive; longer than the balancer's, in seconds"
    )
    ping_seconds: float = Field(
        10, gt=0, le=15, description="silence before an event stream sends a ping, in seconds"
    )
    drain_delay_seconds: float = Field(
        0, ge=0, le=300, description="time after SIGTERM to fail readiness and still take work, in seconds"
    )

    idempotency_seconds: Seconds = Field(
        600, description="how long an answer is kept for its Idempotency-Key, in seconds"
    )
    idempotency_bytes: int = Field(
        256 << 20, ge=0, le=1 << 40, description="most memory for kept answers, in bytes"
    )

    image_threads: int = Field(
        min(4, os.cpu_count() or 1), ge=1, le=64, description="images encoded at the same time"
    )
    png_compress_level: int = Field(1, ge=0, le=9, description="zlib level of PNG; 1 is fast, 9 small")
    embed_prompt: bool = Field(False, description="write the prompt into the image's metadata")
    log_prompts: bool = Field(False, description="write the prompt into the request log")
    otlp_endpoint: str | None = Field(
        None,
        description="OpenTelemetry collector for spans, such as http://collector:4318; needs the extra otel",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severity that is logged"
    )

    magic_prompt_backend: Literal["ideogram", "openai", "webhook"] | None = Field(
        None, description="who expands plain prompts into captions; nobody if unset"
    )
    magic_prompt_url: str | None = Field(
        None,
        description="its address: a chat completions endpoint of openai, an own service of webhook; "
        "of ideogram the public one if unset",
    )
    magic_prompt_model: str | None = Field(None, description="chat model that openai is asked for")
    magic_prompt_key_file: Path | None = Field(None, description="file with its API key")
    magic_prompt_key: SecretStr | None = Field(None, description="the expanding service's API key")
    magic_prompt_seconds: Seconds = Field(
        15, description="longest wait for one answer, of at most two, in seconds"
    )
    magic_prompt_cache: int = Field(
        1024, ge=0, le=1_000_000, description="expanded prompts that are kept, in entries"
    )

    prompt_moderation: str | None = Field(
        None, description="who judges prompts, in this order: of deny-list, hive and webhook, with commas"
    )
    image_moderation: str | None = Field(
        None, description="who judges images, in this order: of hive and webhook, with commas"
    )
    moderation_failure: Literal["closed", "open"] = Field(
        "closed", description="what cannot be judged is refused (closed) or passes (open)"
    )
    moderation_seconds: Seconds = Field(10, description="longest wait for one judgement, in seconds")
    moderated_previews: bool = Field(
        False, description="send previews, which no one judges, though images are moderated"
    )
    deny_list_file: Path | None = Field(
        None,
        description="words and phrases that no prompt may hold, one a line; read again when it changes",
    )
    hive_url: str = Field("https://api.thehive.ai/api/v3/hive", description="Hive's address")
    hive_key_file: Path | None = Field(None, description="file with Hive's API key")
    hive_key: SecretStr | None = Field(None, description="Hive's API key")
    hive_text_severity: int = Field(1, ge=1, le=3, description="least severity that refuses a prompt")
    hive_image_score: float = Field(0.9, gt=0, le=1, description="least score that refuses an image")
    hive_ignore: str = Field(
        "animated,hybrid,natural,text,yes_drawing,yes_overlay_text,yes_qr_code",
        description="Hive's classes that refuse nothing, with commas",
    )
    moderation_webhook_url: str | None = Field(None, description="address of an own service that judges")
    moderation_webhook_key_file: Path | None = Field(None, description="file with its bearer token")
    moderation_webhook_key: SecretStr | None = Field(
        None, description="bearer token of the own service that judges"
    )

    c2pa_certificate_file: Path | None = Field(
        None,
        description="PEM certificate chain that images are signed with; unsigned if unset; "
        "needs the extra c2pa",
    )
    c2pa_key_file: Path | None = Field(None, description="PEM private key of the first certificate")
    c2pa_key: SecretStr | None = Field(None, description="PEM private key of the first certificate")

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

    @property
    def device_list(self) -> tuple[str, ...]:
        """The replicas' devices; empty: the engine chooses."""
        return _items(self.devices or self.device)

    @property
    def model_aliases(self) -> tuple[str, ...]:
        """Model ids that are accepted besides the served one."""
        return _items(self.model_alias)


def _items(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated list."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def read_settings(argv: Sequence[str]) -> Settings:
    """Flags over environment over defaults. A bad value ends the process with exit code 2 and one line."""
    parser = flags.parser(Settings.model_fields)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        parser.exit(2, f"ideoserve: {flag}: {first['msg'].removeprefix('Value error, ')}\n")
