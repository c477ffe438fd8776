"""A store of image files, and its failures."""

from typing import Protocol


class Store(Protocol):
    """Files by the names of `server.store.names`, which hold the time of their deletion."""

    sweep_seconds: float  # between two sweeps

    @property
    def stored_bytes(self) -> int:
        """Size of the files as of the last sweep, in bytes."""

    @property
    def is_full(self) -> bool:
        """Generate no further image for this store."""

    async def start(self) -> None:
        """Call it once, before the first file, and while the broker is connected."""

    async def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it, as a whole. Raises StoreError."""

    async def get(self, name: str) -> bytes | None:
        """The content; None if there is no such file. Raises StoreError."""

    async def delete(self, name: str) -> None:
        """Delete a file, if there is one. Raises StoreError."""

    async def url(self, name: str, expires: int) -> str:
        """A signed URL that works until `expires` (Unix seconds), or a path of this server. Raises
        StoreError."""

    async def sweep(self, now: float) -> None:
        """Delete the files that expired before `now` (Unix seconds). Raises StoreError."""


class StoreError(Exception):
    """The store failed; the reason is in the log."""


class StoreFullError(StoreError):
    """The disk is full, or a limit of the system is reached."""
