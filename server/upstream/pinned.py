"""Connections to addresses that were checked, for URLs that clients name."""

from collections.abc import Awaitable, Callable

import httpx

# Host and port to the addresses to connect to, which are IP addresses. Raises UpstreamError.
Resolve = Callable[[str, int], Awaitable[list[str]]]
CONNECT_SECONDS = 3.0  # for each address


class PinnedTransport(httpx.AsyncBaseTransport):
    """Resolves the host once and connects to what `resolve` returned: a second lookup could return another
    address. Certificates are verified against the name.

    No connection is kept: the pool knows addresses only, and would use one for another name.
    """

    def __init__(self, resolve: Resolve, max_connections: int) -> None:
        self._resolve = resolve
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Try the addresses in order until one accepts a connection."""
        *others, last = await self._resolve(request.url.host, _port(request.url))
        for address in others:
            try:
                return await self._send(request, address)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._send(request, last)

    async def _send(self, request: httpx.Request, address: str) -> httpx.Response:
        """The Host header is already set, from the name."""
        timeout = request.extensions.get("timeout", {}) | {"connect": CONNECT_SECONDS}
        pinned = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "timeout": timeout, "sni_hostname": request.url.host},
        )
        return await self._transport.handle_async_request(pinned)

    async def aclose(self) -> None:
        await self._transport.aclose()


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
