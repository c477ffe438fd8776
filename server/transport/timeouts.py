"""Deadlines and ping intervals from the timeout headers of clients, SDKs and proxies."""

import math

from starlette.datastructures import Headers

from server.schemas.errors import invalid

# Shortest interval between pings, in seconds.
MIN_PING_SECONDS = 0.25


def allowed_seconds(headers: Headers, maximum: float, is_stream: bool) -> float:
    """Seconds that the client waits for the whole response, at most `maximum`. Raises ApiError 400.

    The SDKs' timeouts do not limit a stream: openai-node's ends with the response headers, openai-python's
    limits the silence between two reads.
    """
    waits = [
        _own(headers.get("x-request-timeout")),
        _positive(headers.get("x-envoy-expected-rq-timeout-ms"), scale=0.001),
    ]
    if not is_stream:
        waits += [_read_timeout(headers), _positive(headers.get("x-stainless-timeout"))]
    return min(maximum, *(seconds for seconds in waits if seconds is not None), maximum)


def job_seconds(headers: Headers, maximum: float) -> float:
    """Seconds in which a job must be done. Proxies and SDKs do not limit it. Raises ApiError 400."""
    return min(_own(headers.get("x-request-timeout")) or maximum, maximum)


def ping_seconds(headers: Headers, maximum: float) -> float:
    """Interval of a stream's pings: half the client's read timeout, at most `maximum`."""
    read_timeout = _read_timeout(headers)
    return maximum if read_timeout is None else min(maximum, max(read_timeout / 2, MIN_PING_SECONDS))


def _read_timeout(headers: Headers) -> float | None:
    return _positive(headers.get("x-stainless-read-timeout"))


def _own(text: str | None) -> float | None:
    seconds = _positive(text)
    if text is not None and seconds is None:
        raise invalid("X-Request-Timeout must be a number of seconds above 0.", "X-Request-Timeout")
    return seconds


def _positive(text: str | None, scale: float = 1.0) -> float | None:
    """The number if it is positive and finite; headers that libraries set are ignored otherwise."""
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
