"""Settings of the HTTP API: addresses, limits, timeouts, responses and logs."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from engine.environment import available_cpus

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class HttpSettings(BaseModel):
    """Limits of a request's images come from the checkpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on; :: listens on IPv6 and IPv4")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 selects a free port")
    cors_origins: str | None = Field(
        None,
        description="Comma-separated origins whose web pages may call the API, such as "
        "https://app.example.com; * allows any; if unset, none",
    )

    model_alias: str | None = Field(
        None, description="Comma-separated model ids that requests may also use, such as dall-e-3,gpt-image-1"
    )
    size_policy: Literal["strict", "nearest"] = Field(
        "strict",
        description="Image sizes outside the model's limits: refuse (strict) or round to the nearest allowed "
        "size (nearest)",
    )
    api_keys_file: Path | None = Field(
        None, description="JSON file of API keys, reloaded when it changes; if unset, no key is required"
    )
    max_n: int = Field(10, ge=1, le=10, description="Maximum images per request")
    max_request_seconds: Seconds = Field(300, description="Maximum deadline of a request, in seconds")
    max_backlog_seconds: Seconds = Field(
        120, description="Maximum predicted work per device, in seconds; above it requests get 429"
    )
    batch_backlog_share: float = Field(
        0.5, gt=0, le=1, description="Share of max_backlog_seconds that priority `batch` may fill"
    )

    max_body_bytes: int = Field(1 << 20, ge=1024, le=64 << 20, description="Maximum request body, in bytes")
    max_inflight_body_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="Maximum memory for all request bodies being read, in bytes, not counting the first "
        "16 KiB of each; at least max_body_bytes",
    )
    body_timeout_seconds: Seconds = Field(10, description="Maximum time to receive a body, in seconds")
    max_upload_bytes: int = Field(
        50 << 20, ge=1024, le=1 << 30, description="Maximum body of an edit, images included, in bytes"
    )
    max_inflight_upload_bytes: int = Field(
        512 << 20,
        ge=1024,
        le=1 << 40,
        description="Maximum size of all bodies of edits being read and of their images until they are "
        "answered, in bytes; above it edits get 503; at least max_upload_bytes",
    )
    upload_timeout_seconds: Seconds = Field(
        60, description="Maximum time to receive the body of an edit, in seconds"
    )
    header_timeout_seconds: Seconds = Field(
        20, description="Maximum time to receive a request's headers, in seconds"
    )
    write_timeout_seconds: Seconds = Field(
        30,
        description="Time after which a client that reads less than 4 KiB/s is disconnected, in seconds",
    )
    max_unsent_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        le=1 << 40,
        description="Maximum memory for responses that clients read slowly, in bytes; above it the slowest "
        "clients are disconnected",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum open connections; above it requests get 503, except probes and metrics",
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1024, le=1 << 20, description="Maximum request line and headers, in bytes"
    )
    max_header_count: int = Field(100, ge=10, le=1000, description="Maximum headers per request")
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        le=3600,
        description="Idle time after which a connection is closed, in seconds; set it above the load "
        "balancer's",
    )
    ping_seconds: float = Field(
        10, gt=0, le=15, description="Silence after which an event stream sends a ping, in seconds"
    )
    drain_delay_seconds: float = Field(
        0,
        ge=0,
        le=300,
        description="Time after SIGTERM in which readiness fails and requests are still served, in seconds",
    )

    idempotency_seconds: Seconds = Field(
        600, description="Time that a response is kept for its Idempotency-Key, in seconds"
    )
    idempotency_bytes: int = Field(
        256 << 20, ge=0, le=1 << 40, description="Maximum memory for kept responses, in bytes"
    )

    image_threads: int = Field(
        min(4, available_cpus()),
        ge=1,
        le=64,
        description="Threads that encode image files, and processes of at most 1 GiB that decode uploaded "
        "images",
    )
    png_compress_level: int = Field(
        1, ge=0, le=9, description="zlib level of PNG files; 1 is fastest, 9 smallest, 0 uncompressed"
    )
    embed_prompt: bool = Field(False, description="Write the prompt into the metadata of image files")
    log_prompts: bool = Field(False, description="Write the prompt into the request log")
    otlp_endpoint: str | None = Field(
        None,
        description="URL of the OpenTelemetry collector for spans, such as http://collector:4318; "
        "needs the extra otel",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum severity that is logged"
    )
