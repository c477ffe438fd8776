"""HTTP client for upstreams: third-party services that process a prompt or an image.

Responses are bounded in time and size and never decompressed. Errors, logs and metrics contain the kind of a
failure, but no key, URL, request or response.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import from_json

from server.offload import offload

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

    `listener` is called after each request with the upstream's name, the outcome and the seconds.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._clients: dict[str, httpx.AsyncClient] = {}

    def client(self, name: str) -> httpx.AsyncClient:
        """Created on first use: most servers have no upstream."""
        if name not in self._clients:
            limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
            self._clients[name] = httpx.AsyncClient(limits=limits, timeout=None, follow_redirects=False)
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
        started, outcome = time.perf_counter(), "cancelled"
        try:
            body = await self._ask(self.url + path, content)
            result = await offload(len(body), lambda: read(_parse(answer, body)))
            outcome = "ok"
            return result
        except UpstreamError as error:
            outcome = error.kind
            raise
        finally:
            self.upstreams.listener(self.name, outcome, time.perf_counter() - started)

    async def _ask(self, url: str, content: dict[str, Any]) -> bytes:
        try:
            async with asyncio.timeout(self.seconds):
                return await self._receive(url, content)
        except TimeoutError:
            raise UpstreamError("timeout", f"no response within {self.seconds:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise UpstreamError("unreachable", "no response") from None

    async def _receive(self, url: str, content: dict[str, Any]) -> bytes:
        body = bytearray()
        client = self.upstreams.client(self.name)
        async with client.stream("POST", url, headers=self._headers(), **content) as response:
            client.cookies.clear()  # an upstream that keeps setting new cookies would fill the jar
            if response.status_code != 200:
                message = f"its response has status {response.status_code}"
                raise UpstreamError("status", message, response.status_code)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UpstreamError("invalid", "its response is compressed")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UpstreamError("invalid", "its response is too large")
                await asyncio.sleep(0)  # one read of the socket may yield thousands of small chunks
        return bytes(body)

    def _headers(self) -> dict[str, str]:
        key = {self.header: self.scheme + self.key.get_secret_value()} if self.key else {}
        return {"Accept-Encoding": "identity", **key}


def _parse(answer: type[T], body: bytes) -> T:
    try:
        return answer.model_validate(from_json(body, allow_inf_nan=False))
    except (ValidationError, ValueError):
        raise UpstreamError("invalid", "its response does not match the schema") from None
