"""Hive's text and visual moderation."""

import asyncio
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.moderation.moderator import PASSED, Categories, named
from server.upstream.client import Upstream

# Hive reads this many characters of a text; pieces overlap, so that no phrase up to OVERLAP is cut.
MAX_CHARACTERS = 1024
OVERLAP = 100
MAX_CLASSES = 1000
MAX_OUTPUTS = 100
NO_FINDING = ("general_not_nsfw_not_suggestive",)


class _Severity(BaseModel):
    """-1 if the class does not support the language."""

    model_config = ConfigDict(strict=True)

    name: str = Field(alias="class")
    value: int = Field(ge=-1, le=3)


class _Score(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str = Field(alias="class")
    value: float = Field(ge=0, le=1)


class _TextOutput(BaseModel):
    classes: Annotated[list[_Severity], Field(min_length=1, max_length=MAX_CLASSES)]


class _ImageOutput(BaseModel):
    classes: Annotated[list[_Score], Field(min_length=1, max_length=MAX_CLASSES)]


class _TextAnswer(BaseModel):
    output: Annotated[list[_TextOutput], Field(min_length=1, max_length=MAX_OUTPUTS)]


class _ImageAnswer(BaseModel):
    output: Annotated[list[_ImageOutput], Field(min_length=1, max_length=MAX_OUTPUTS)]


class Hive:
    """Refuses text from `severity` (1 to 3) and images from `score` (0 to 1), except `ignored` classes."""

    name = "hive"

    def __init__(self, upstream: Upstream, severity: int, score: float, ignored: frozenset[str]) -> None:
        self._upstream = upstream
        self._severity = severity
        self._score = score
        self._ignored = ignored

    async def moderate_text(self, text: str) -> Categories:
        """Moderates all pieces concurrently. A finding in one counts even if other calls fail."""
        pieces = await asyncio.gather(*map(self._moderate_piece, _pieces(text)), return_exceptions=True)
        found = PASSED.union(*(piece for piece in pieces if not isinstance(piece, BaseException)))
        failures = [piece for piece in pieces if isinstance(piece, BaseException)]
        if failures and not found:
            raise failures[0]
        return found

    async def _moderate_piece(self, text: str) -> Categories:
        question = {"input": [{"text": text}]}
        return await self._upstream.post(_TextAnswer, self._text, "/text-moderation", json=question)

    async def moderate_image(self, data: bytes, media_type: str) -> Categories:
        files = {"media": ("image", data, media_type)}
        return await self._upstream.post(_ImageAnswer, self._image, "/visual-moderation", files=files)

    def _text(self, answer: _TextAnswer) -> Categories:
        classes = [found for output in answer.output for found in output.classes]
        return self._found(found.name for found in classes if found.value >= self._severity)

    def _image(self, answer: _ImageAnswer) -> Categories:
        classes = [found for output in answer.output for found in output.classes]
        return self._found(found.name for found in classes if found.value >= self._score)

    def _found(self, names: Iterable[str]) -> Categories:
        """Skips the class of each head that means "nothing found"."""
        found = [
            name
            for name in names
            if not name.startswith("no_") and name not in NO_FINDING and name not in self._ignored
        ]
        return named(found) if found else PASSED


def _pieces(text: str) -> list[str]:
    step = MAX_CHARACTERS - OVERLAP
    return [text[start : start + MAX_CHARACTERS] for start in range(0, max(len(text) - OVERLAP, 1), step)]
