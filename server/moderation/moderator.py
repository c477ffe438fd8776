"""Moderators return the categories that a text or an image is refused for, none if it passes."""

import re
from collections.abc import Iterable
from typing import Protocol

Categories = frozenset[str]
PASSED: Categories = frozenset()
CATEGORY = re.compile(r"[A-Za-z0-9_./-]{1,64}")
MAX_CATEGORIES = 20


class TextModerator(Protocol):
    name: str

    async def moderate_text(self, text: str) -> Categories:
        """Raises UpstreamError."""


class ImageModerator(Protocol):
    name: str

    async def moderate_image(self, data: bytes, media_type: str) -> Categories:
        """Raises UpstreamError."""


def named(categories: Iterable[str]) -> Categories:
    """Category names may be free text; those that are not plain words become `other`."""
    names = sorted(name if CATEGORY.fullmatch(name) else "other" for name in categories)
    return frozenset(names[:MAX_CATEGORIES]) or frozenset(("other",))
