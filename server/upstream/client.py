"""HTTP client for upstreams: third-party services that process a prompt or an image.

Responses are bounded in time and size and never decompressed. Errors, logs and metrics contain the kind of a
failure, but no key, URL, request or response.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import from_json

from server.offload import offload
from server.upstream.pinned import PinnedTransport, Resolve

T = TypeVar("T", bound=BaseModel)
R = TypeVar("R")
Listener = Callable[[str, str, float], None]
MAX_ANSWER_BYTES = 1 << 20
MAX_CONNECTIONS = 100


class UpstreamError(Exception):
    """An upstream did not answer as expected. `kind` is the outcome in metrics, `status` its HTTP status."""

    def __init__(self, kind: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class UpstreamClients:
    """A connection pool for each upstream, so that one that hangs does not block another.

    `listener` is called after each request with the upstream's name, the outcome and the seconds. With
    `resolve`, which is for URLs that clients name, connections go to the addresses that it returns, without
    a proxy.
    """

    def __init__(self, listener: Listener, resolve: Resolve | None = None) -> None:
        self.listener = listener
        self._resolve = resolve
        self._clients: dict[str, httpx.AsyncClient] = {}

    def client(self, name: str) -> httpx.AsyncClient:
        """Created on first use: most servers have no upstream."""
        if name not in self._clients:
            self._clients[name] = httpx.AsyncClient(
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
                transport=PinnedTransport(self._resolve, MAX_CONNECTIONS) if self._resolve else None,
                trust_env=self._resolve is None,  # no proxies, and no credentials from .netrc
                timeout=None,
                follow_redirects=False,
            )
        return self._clients[name]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


@dataclass(frozen=True, slots=True)
class Upstream:
    """One upstream: its URL, credentials, and response time limit in seconds."""

    name: str
    url: str
    seconds: float
    upstreams: UpstreamClients
    key: SecretStr | None = None
    header: str = "Authorization"
    scheme: str = "Bearer "

    async def post(self, answer: type[T], read: Callable[[T], R], path: str = "", **content: Any) -> R:
        """POST httpx's `content` and return `read` of the parsed response. Raises UpstreamError."""
        with self._measured():
            async with self._response(self.url + path, self._headers(), content) as response:
                body = await _body(response)
            return await offload(len(body), lambda: read(_parse(answer, body)))

    async def notify(self, headers: Mapping[str, str], content: bytes) -> None:
        """POST a message. Any 2xx is a success; the response's body is not read. Raises UpstreamError."""
        with self._measured():
            async with self._response(self.url, headers, {"content": content}) as response:
                if not response.is_success:
                    raise _status(response)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        started, outcome = time.perf_counter(), "cancelled"
        try:
            yield
            outcome = "ok"
        except UpstreamError as error:
            outcome = error.kind
            raise
        finally:
            self.upstreams.listener(self.name, outcome, time.perf_counter() - started)

    @asynccontextmanager
    async def _response(
        self, url: str, headers: Mapping[str, str], content: dict[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        """The time limit includes what the caller does with the response."""
        client = self.upstreams.client(self.name)
        try:
            async with (
                asyncio.timeout(self.seconds),
                client.stream("POST", url, headers=headers, **content) as response,
            ):
                client.cookies.clear()  # an upstream that keeps setting new cookies would fill the jar
                yield response
        except TimeoutError:
            raise UpstreamError("timeout", f"no response within {self.seconds:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise UpstreamError("unreachable", "no response") from None

    def _headers(self) -> dict[str, str]:
        key = {self.header: self.scheme + self.key.get_secret_value()} if self.key else {}
        return {"Accept-Encoding": "identity", **key}


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != 200:
        raise _status(response)
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UpstreamError("invalid", "its response is compressed")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise UpstreamError("invalid", "its response is too large")
        await asyncio.sleep(0)  # one read of the socket may yield thousands of small chunks
    return bytes(body)


def _status(response: httpx.Response) -> UpstreamError:
    code = response.status_code
    return UpstreamError("status", f"its response has status {code}", code)


def _parse(answer: type[T], body: bytes) -> T:
    try:
        return answer.model_validate(from_json(body, allow_inf_nan=False))
    except (ValidationError, ValueError):
        raise UpstreamError("invalid", "its response does not match the schema") from None
