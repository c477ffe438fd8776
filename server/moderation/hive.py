"""Hive's text and visual moderation."""

import asyncio
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.moderation.judge import PASSED, Categories, named
from server.upstream.client import Upstream

# Hive reads no more than this of a text; pieces overlap, so that no phrase of this length is cut.
MAX_CHARACTERS = 1024
OVERLAP = 100
MAX_CLASSES = 1000
MAX_OUTPUTS = 100
NO_FINDING = ("general_not_nsfw_not_suggestive",)


class _Severity(BaseModel):
    """-1 is a class that does not know the language."""

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
    """`severity` 1..3 and `score` 0..1 are what refuses; `ignored` classes never do."""

    name = "hive"

    def __init__(self, upstream: Upstream, severity: int, score: float, ignored: frozenset[str]) -> None:
        self._upstream = upstream
        self._severity = severity
        self._score = score
        self._ignored = ignored

    async def judge_text(self, text: str) -> Categories:
        """All pieces at once: a long caption takes no longer than a short one. What is found in one counts,
        whatever became of the others."""
        pieces = await asyncio.gather(*map(self._judge_piece, _pieces(text)), return_exceptions=True)
        found = PASSED.union(*(piece for piece in pieces if not isinstance(piece, BaseException)))
        failures = [piece for piece in pieces if isinstance(piece, BaseException)]
        if failures and not found:
            raise failures[0]
        return found

    async def _judge_piece(self, text: str) -> Categories:
        question = {"input": [{"text": text}]}
        return await self._upstream.post(_TextAnswer, self._text, "/text-moderation", json=question)

    async def judge_image(self, data: bytes, media_type: str) -> Categories:
        files = {"media": ("image", data, media_type)}
        return await self._upstream.post(_ImageAnswer, self._image, "/visual-moderation", files=files)

    def _text(self, answer: _TextAnswer) -> Categories:
        classes = [found for output in answer.output for found in output.classes]
        return self._found(found.name for found in classes if found.value >= self._severity)

    def _image(self, answer: _ImageAnswer) -> Categories:
        classes = [found for output in answer.output for found in output.classes]
        return self._found(found.name for found in classes if found.value >= self._score)

    def _found(self, names: Iterable[str]) -> Categories:
        """Each head of the visual model has a class for "nothing found", which is no reason to refuse."""
        found = [
            name
            for name in names
            if not name.startswith("no_") and name not in NO_FINDING and name not in self._ignored
        ]
        return named(found) if found else PASSED


def _pieces(text: str) -> list[str]:
    step = MAX_CHARACTERS - OVERLAP
    return [text[start : start + MAX_CHARACTERS] for start in range(0, max(len(text) - OVERLAP, 1), step)]
