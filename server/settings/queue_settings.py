"""Settings of the queue that several servers share."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

EMBEDDED = "embedded"
MAX_JOB_TTL = 90 * 86_400
SERVER = re.compile(r"(nats|tls)://([^\s/?#@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?")
MAX_PORT = 65_535
Role = Literal["all", "front", "worker"]


class QueueSettings(BaseModel):
    """All optional. Without `queue`, the server works alone."""

    queue: str | None = Field(
        None,
        description="Queue that servers share: comma-separated URLs of NATS servers with JetStream, such as "
        "nats://nats:4222 (tls:// requires TLS), or `embedded` for a NATS server of this process; if unset, "
        "none; needs the extra queue",
    )
    queue_dir: Path | None = Field(
        None,
        description="Folder of the embedded NATS server's data; no other server may use it",
    )
    queue_credentials_file: Path | None = Field(
        None,
        description="File that authenticates to NATS: a .creds file, or one line with USER:PASSWORD, a token "
        "without a colon, or the nkey seed of a user",
    )
    queue_tls_ca_file: Path | None = Field(
        None, description="PEM certificates that verify the NATS servers; if unset, those of the system"
    )
    queue_tls_certificate_file: Path | None = Field(
        None,
        description="PEM certificate chain that authenticates to NATS, with its private key unless "
        "queue_tls_key_file is set",
    )
    queue_tls_key_file: Path | None = Field(None, description="PEM private key of queue_tls_certificate_file")
    queue_replicas: int = Field(
        1, ge=1, le=5, description="NATS servers that store each message; at most as many as there are"
    )
    role: Role = Field(
        "all",
        description="With a queue: serve HTTP and run the model (all), serve HTTP only, without weights and "
        "device (front), or run the model only (worker)",
    )

    job_ttl_seconds: float = Field(
        86_400,
        ge=1,
        le=MAX_JOB_TTL,
        allow_inf_nan=False,
        description="Time that a finished job and its images are kept, and a job may take, in seconds",
    )
    max_queued_jobs: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Maximum jobs that are queued or running, on all servers; above it requests get 429",
    )

    @field_validator("queue")
    @classmethod
    def _are_servers(cls, value: str | None) -> str | None:
        if value in (None, EMBEDDED):
            return value
        for server in servers(value):
            if "@" in server:
                raise ValueError("credentials go in queue_credentials_file, not in the URL")
            if not _is_server(server):
                raise ValueError(f"{server} is not `embedded`, nats://HOST[:PORT] or tls://HOST[:PORT]")
        return value

    @field_validator("queue_dir")
    @classmethod
    def _is_of_the_embedded_queue(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        is_embedded = info.data.get("queue") == EMBEDDED
        if is_embedded and value is None:
            raise ValueError("required if queue is `embedded`")
        if value is not None and not is_embedded and "queue" in info.data:
            raise ValueError("needs queue `embedded`")
        return value

    @field_validator(
        "queue_credentials_file", "queue_tls_ca_file", "queue_tls_certificate_file", "queue_tls_key_file"
    )
    @classmethod
    def _is_of_a_server(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if "queue" in info.data and info.data["queue"] in (None, EMBEDDED):
            raise ValueError("needs queue with the URL of a NATS server")
        if info.field_name == "queue_tls_key_file" and not info.data.get("queue_tls_certificate_file"):
            raise ValueError("needs queue_tls_certificate_file")
        return value

    @field_validator("role")
    @classmethod
    def _has_a_queue(cls, value: Role, info: ValidationInfo) -> Role:
        queue = info.data.get("queue", "")
        if value != "all" and queue is None:
            raise ValueError(f"`{value}` needs queue")
        if value != "all" and queue == EMBEDDED:
            raise ValueError(
                f"`{value}` needs the URL of a NATS server; no other process uses the embedded one"
            )
        return value


def _is_server(url: str) -> bool:
    match = SERVER.fullmatch(url)
    return match is not None and int(match["port"] or 1) <= MAX_PORT


def servers(queue: str | None) -> tuple[str, ...]:
    """The URLs of a comma-separated list."""
    return tuple(part.strip() for part in (queue or "").split(",") if part.strip())
