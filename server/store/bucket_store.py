"""Image files in a bucket of S3, Google Cloud Storage or Azure, which signs their URLs; needs the extra
`store`.

Credentials and endpoints come from the environment, as the tools of each provider read them.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from server.settings.config_error import ConfigError
from server.store import names
from server.store.store import StoreError

logger = logging.getLogger(__name__)
RETRIES = 2
DELETED_AT_ONCE = 1000


class BucketStore:
    """Never full: the provider bounds a bucket, if anything does."""

    sweep_seconds = 3600.0
    stored_bytes = 0
    is_full = False

    def __init__(self, url: str, now: Callable[[], float]) -> None:
        """`now` is the clock of all servers, in Unix seconds. Raises ConfigError; calls no bucket."""
        self._now = now
        try:
            store = from_url(url, retry_config={"max_retries": RETRIES})
        except (BaseError, ValueError) as error:
            raise ConfigError(f"--store: {_first_line(error)}") from None
        assert isinstance(store, S3Store | GCSStore | AzureStore)
        self._store = store

    async def start(self) -> None:
        """Ready at once."""

    async def put(self, name: str, data: bytes) -> None:
        seconds = max(0, names.expiry(name) - int(self._now()))
        attributes = {
            "Content-Type": names.media_type(name),
            "Content-Disposition": f'inline; filename="{names.download_name(name)}"',
            "Cache-Control": f"private, max-age={seconds}, immutable",
        }
        with _failures("store an image"):
            await obstore.put_async(self._store, name, data, attributes=attributes, use_multipart=False)

    async def get(self, name: str) -> bytes | None:
        with _failures("read an image"):
            try:
                found = await obstore.get_async(self._store, name)
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def delete(self, name: str) -> None:
        await self._delete([name])

    async def url(self, name: str, expires: int) -> str:
        # The signature begins at the time of this host, so that its end is `expires`.
        left = timedelta(seconds=max(1, expires - int(time.time())))
        with _failures("sign a URL"):
            return await obstore.sign_async(self._store, "GET", name, left)

    async def sweep(self, now: float) -> None:
        stored, expired = 0, list[str]()
        async for name, size in self._files():
            if names.expiry(name) <= now:
                expired.append(name)
            else:
                stored += size
        for start in range(0, len(expired), DELETED_AT_ONCE):
            await self._delete(expired[start : start + DELETED_AT_ONCE])
        self.stored_bytes = stored

    async def _files(self) -> AsyncIterator[tuple[str, int]]:
        """Names and bytes of the files of this store; others in the bucket are left alone."""
        with _failures("list the stored images"):
            async for chunk in obstore.list(self._store):
                for file in chunk:
                    if names.is_name(file["path"]):
                        yield file["path"], file["size"]

    async def _delete(self, paths: list[str]) -> None:
        # Another server may have just deleted one.
        with _failures("delete images"), suppress(FileNotFoundError):
            await obstore.delete_async(self._store, paths)


@contextmanager
def _failures(action: str) -> Iterator[None]:
    """Log and raise the failures of a bucket as StoreError."""
    try:
        yield
    except (BaseError, OSError) as error:
        logger.error("cannot %s: %s", action, _first_line(error))
        raise StoreError from None


def _first_line(error: Exception) -> str:
    """The rest repeats it as a structure."""
    return str(error).partition("\n")[0]
