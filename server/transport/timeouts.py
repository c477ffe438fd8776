"""How long a client is going to wait, from the headers that say so."""

import math

from starlette.datastructures import Headers

from server.schemas.errors import invalid


def allowed_seconds(headers: Headers, maximum: float) -> float:
    """The least of the server's maximum and what the client, its SDK and its proxy say."""
    told = (
        _own(headers.get("x-request-timeout")),
        _positive(headers.get("x-stainless-read-timeout")),
        _positive(headers.get("x-envoy-expected-rq-timeout-ms"), scale=0.001),
    )
    return min(maximum, *(seconds for seconds in told if seconds is not None), maximum)


def _own(text: str | None) -> float | None:
    seconds = _positive(text)
    if text is not None and seconds is None:
        raise invalid("X-Request-Timeout is a number of seconds above 0.", "X-Request-Timeout")
    return seconds


def _positive(text: str | None, scale: float = 1.0) -> float | None:
    """Software's own headers are not worth an error: what is no positive number says nothing."""
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
