"""Stores the images of responses, returns their URLs, and deletes them when these expire."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from server.schemas.errors import ApiError
from server.schemas.images import OutputFormat
from server.store import names
from server.store.links import Links
from server.store.store import Store, StoreError, StoreFullError

logger = logging.getLogger(__name__)
PUT_SECONDS = 20
Listener = Callable[[str, str, float], None]


class Results:
    """`listener` is called after each file with `store`, the outcome and the seconds."""

    def __init__(
        self,
        store: Store,
        links: Links | None,
        now: Callable[[], float],
        url_seconds: int,
        public_url: str | None,
        sweeps: bool,
        listener: Listener,
    ) -> None:
        """`links` signs the URLs of a store that this server serves; `public_url` is their base. `now` is the
        clock of all servers, in Unix seconds."""
        self.store = store
        self.links = links
        self._now = now
        self._url_seconds = url_seconds
        self._public_url = public_url
        self._sweeps = sweeps
        self._listener = listener
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Delete expired files from now on."""
        await self.store.start()
        if self.links and self.links.end_with_process:
            logger.warning("--url-secret-file is not set: URLs of images end with this process")
        if self._sweeps:
            self._sweeping = asyncio.create_task(self._sweep())

    def close(self) -> None:
        if self._sweeping:
            self._sweeping.cancel()

    def stored_bytes(self) -> int:
        """As of the last sweep."""
        return self.store.stored_bytes

    def check_room(self) -> None:
        """Raises ApiError 503 if the store is full."""
        if self.store.is_full:
            raise _no_room()

    async def publish(
        self, owner: str, image_index: int, output_format: OutputFormat, data: bytes, base_url: str
    ) -> str:
        """Store a file and return its URL, within a bounded time. Raises ApiError 502 or 503."""
        expires = int(self._now()) + self._url_seconds
        name = names.file_name(owner, image_index, expires, output_format)
        return await self._counted(self._publish(name, data, expires, base_url))

    async def _publish(self, name: str, data: bytes, expires: int, base_url: str) -> str:
        await self.store.put(name, data)
        return await self.url(name, expires, base_url)

    async def url(self, name: str, expires: int, base_url: str) -> str:
        """The URL of a stored file until `expires` (Unix seconds). Raises StoreError."""
        url = await self.store.url(name, expires)
        return (self._public_url or base_url).rstrip("/") + url if url.startswith("/") else url

    async def _counted(self, publishing: Awaitable[str]) -> str:
        started, outcome = time.perf_counter(), "cancelled"
        try:
            async with asyncio.timeout(PUT_SECONDS):
                url = await publishing
            outcome = "ok"
            return url
        except (StoreError, TimeoutError) as error:
            outcome = _outcome(error)
            raise _not_stored(error) from None
        finally:
            self._listener("store", outcome, time.perf_counter() - started)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.store.sweep(self._now())
            except StoreError:
                logger.warning("expired images were not deleted; the next attempt follows")
            await asyncio.sleep(self.store.sweep_seconds)


def _outcome(error: Exception) -> str:
    """In metrics."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "full" if isinstance(error, StoreFullError) else "failed"


def _not_stored(error: Exception) -> ApiError:
    """A retry without an Idempotency-Key would generate the image again."""
    full = isinstance(error, StoreFullError)
    status, code = (503, "store_full") if full else (502, "store_unavailable")
    message = (
        "The image was generated, but storing it failed. Repeat the request with the same Idempotency-Key to "
        "store it again, or use `response_format` `b64_json`."
    )
    return ApiError(status, code, message, param="response_format", retry=False)


def _no_room() -> ApiError:
    """Before any device time is spent."""
    message = "The store is full until older images expire; retry later, or use `response_format` `b64_json`."
    return ApiError(503, "store_full", message, param="response_format", retry_after=60)
