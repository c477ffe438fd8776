"""RFC 9112 checks that h11 does not make, and normalization of request targets."""

import re

from starlette.datastructures import Headers
from starlette.types import Scope

from server.schemas.errors import ApiError, invalid
from server.settings.settings import Settings

ABSOLUTE = re.compile(rb"https?://[^/?#%]+", re.IGNORECASE)
VERSIONS = ("1.0", "1.1")
# Headers that may not be repeated: a proxy and the server could read different values.
ONCE = ("Content-Type", "Authorization", "Api-Key", "Idempotency-Key", "X-Priority", "X-Request-Timeout")
CLOSE = {"Connection": "close"}


def normalize(scope: Scope) -> Scope:
    """Turn `GET http://host/path` into `GET /path`, for any host, and normalize the slashes of API paths."""
    match = ABSOLUTE.match(scope["raw_path"])
    start = match.end() if match else 0
    path, raw_path = scope["path"][start:] or "/", scope["raw_path"][start:] or b"/"
    return {**scope, "path": _api_path(path), "raw_path": raw_path}


def _api_path(path: str) -> str:
    """Collapse repeated slashes and drop the last one, which base URLs that end in a slash lead to.

    Only below /v1: a reverse proxy may block other paths, such as /metrics, by their exact names.
    """
    tidy = "/" + "/".join(filter(None, path.split("/")))
    return tidy if tidy.startswith("/v1/") else path


def check(scope: Scope, settings: Settings) -> None:
    """Raises ApiError 400, 431 or 505."""
    if scope["http_version"] not in VERSIONS:
        message = "The server supports HTTP/1.1 and HTTP/1.0."
        raise ApiError(505, "http_version_not_supported", message, headers=CLOSE)
    if len(scope["headers"]) > settings.max_header_count:
        raise ApiError(
            431, "too_many_headers", f"A request may have at most {settings.max_header_count} headers."
        )
    if _head_bytes(scope) > settings.max_header_bytes:
        raise ApiError(
            400, "invalid_request", f"The request line and headers exceed {settings.max_header_bytes} bytes."
        )
    _check_target(scope)
    headers = Headers(scope=scope)
    _check_framing(scope, headers)
    for name in ONCE:
        if len(headers.getlist(name)) > 1:
            raise invalid(f"{name} was sent more than once.", name)


def _head_bytes(scope: Scope) -> int:
    """Bytes of the request line and headers, without separators."""
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return len(scope["raw_path"]) + len(scope["query_string"]) + fields


def _check_target(scope: Scope) -> None:
    target = scope["raw_path"]
    if not (target.startswith(b"/") or target == b"*") or b"#" in target + scope["query_string"]:
        message = "The request target must be a path or an http URL, without a fragment."
        raise ApiError(400, "invalid_request", message)


def _check_framing(scope: Scope, headers: Headers) -> None:
    """Refuse ambiguous framing, which would allow request smuggling."""
    if "transfer-encoding" not in headers:
        return
    if "content-length" in headers:
        message = "Content-Length and Transfer-Encoding must not be combined."
        raise ApiError(400, "invalid_request", message, headers=CLOSE)
    if scope["http_version"] == "1.0":
        message = "HTTP/1.0 does not support Transfer-Encoding."
        raise ApiError(400, "invalid_request", message, headers=CLOSE)
