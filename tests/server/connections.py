"""A connection as requests see it, for tests that call the application in this process."""

import asyncio
from types import SimpleNamespace


def connection() -> SimpleNamespace:
    """Open on both sides."""
    return SimpleNamespace(is_surplus=False, is_last_request=False, half_closed=asyncio.Event())
