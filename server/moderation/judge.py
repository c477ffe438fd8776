"""Those who judge: each names the categories that a text or an image falls under, none if it passes."""

import re
from collections.abc import Iterable
from typing import Protocol

Categories = frozenset[str]
PASSED: Categories = frozenset()
CATEGORY = re.compile(r"[A-Za-z0-9_./-]{1,64}")
MAX_CATEGORIES = 20


class TextJudge(Protocol):
    name: str

    async def judge_text(self, text: str) -> Categories:
        """Raises UpstreamError."""


class ImageJudge(Protocol):
    name: str

    async def judge_image(self, data: bytes, media_type: str) -> Categories:
        """Raises UpstreamError."""


def named(categories: Iterable[str]) -> Categories:
    """What a judge calls a category may be anybody's text; only plain words are passed on."""
    names = sorted(name if CATEGORY.fullmatch(name) else "other" for name in categories)
    return frozenset(names[:MAX_CATEGORIES]) or frozenset(("other",))
