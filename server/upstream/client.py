"""Other people's HTTP services that are asked about a prompt or an image.

An answer is bounded in time and size, and never decompressed. Of a failure only its kind is kept: neither a
key, nor an address, nor what was sent or answered gets into an error, a log or a metric.
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
    """The one network client of the server, and who is told of each call: name, outcome, seconds.

    Each service has its own connections: one that hangs holds up no other."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._clients: dict[str, httpx.AsyncClient] = {}

    def client(self, name: str) -> httpx.AsyncClient:
        """Made when first needed: most servers ask nobody."""
        if name not in self._clients:
            limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
            self._clients[name] = httpx.AsyncClient(limits=limits, timeout=None, follow_redirects=False)
        return self._clients[name]

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


@dataclass(frozen=True, slots=True)
class Upstream:
    """One service: where it is, what it wants in which header, and how many seconds it has to answer."""

    name: str
    url: str
    seconds: float
    upstreams: UpstreamClients
    key: SecretStr | None = None
    header: str = "Authorization"
    scheme: str = "Bearer "

    async def post(self, answer: type[T], read: Callable[[T], R], path: str = "", **content: Any) -> R:
        """What `read` makes of the answer to a POST of httpx's `content`. Raises UpstreamError."""
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
            raise UpstreamError("timeout", f"no answer within {self.seconds:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise UpstreamError("unreachable", "no answer") from None

    async def _receive(self, url: str, content: dict[str, Any]) -> bytes:
        body = bytearray()
        client = self.upstreams.client(self.name)
        async with client.stream("POST", url, headers=self._headers(), **content) as response:
            client.cookies.clear()  # else the jar of a service that sets new ones for ever would grow
            if response.status_code != 200:
                message = f"it answered {response.status_code}"
                raise UpstreamError("status", message, response.status_code)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UpstreamError("invalid", "its answer is compressed")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise UpstreamError("invalid", "its answer is too large")
                await asyncio.sleep(0)  # chunks of a byte: thousands come with one read of the socket
        return bytes(body)

    def _headers(self) -> dict[str, str]:
        key = {self.header: self.scheme + self.key.get_secret_value()} if self.key else {}
        return {"Accept-Encoding": "identity", **key}


def _parse(answer: type[T], body: bytes) -> T:
    try:
        return answer.model_validate(from_json(body, allow_inf_nan=False))
    except (ValidationError, ValueError):
        raise UpstreamError("invalid", "its answer is not what it should be") from None
