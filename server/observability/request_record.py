"""The facts about one HTTP request that its log line, metrics and span report."""

import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from server.generation.parameters import Parameters
from server.generation.transcript import Timings
from server.schemas.errors import ApiError

GENERATION_PATHS = ("/v1/images", "/v1/images/generations")
EDIT_PATHS = ("/v1/images/edits", "/v1/images/variations")
IMAGE_PATHS = GENERATION_PATHS + EDIT_PATHS
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The caller's span, from the W3C header `traceparent`."""

    trace_id: str
    span_id: str
    flags: str

    @classmethod
    def parse(cls, header: str | None) -> "TraceParent | None":
        match = TRACEPARENT.fullmatch(header or "")
        if match is None or match[1] == "ff" or not (int(match[2], 16) and int(match[3], 16)):
            return None
        return cls(match[2], match[3], match[4])


@dataclass(slots=True)
class RequestRecord:
    """`outcome` is `ok` or an error code; `status` is 0 until the response starts, and `is_answered` is set
    once the whole response is sent. `seconds` is the time since the request arrived, `upload_bytes` what
    counts as the memory of its images."""

    request_id: str
    method: str
    path: str
    parent: TraceParent | None
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.perf_counter)
    is_in_flight: bool = False
    status: int = 0
    is_answered: bool = False
    outcome: str = "ok"
    key: str | None = None
    priority: str | None = None
    mode: str | None = None
    generation_id: str | None = None
    parameters: Parameters | None = None
    timings: Timings | None = None
    upload_bytes: int = 0

    @classmethod
    def of(cls, scope: Scope) -> "RequestRecord":
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        return cls(
            request_id=sent if REQUEST_ID.fullmatch(sent) else "req-" + secrets.token_hex(12),
            method=scope["method"],
            path=scope["path"],
            parent=TraceParent.parse(headers.get("traceparent")),
        )

    @property
    def is_image_request(self) -> bool:
        return self.method == "POST" and self.path in IMAGE_PATHS

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.clock

    def fail(self, error: ApiError) -> None:
        self.outcome = error.code
