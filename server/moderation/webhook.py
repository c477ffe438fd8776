"""A moderation service that the operator runs."""

import base64
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from server.moderation.moderator import PASSED, Categories, named
from server.upstream.client import Upstream


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True)

    flagged: bool
    categories: Annotated[list[str], Field(max_length=1000)] = []

    def found(self) -> Categories:
        return named(self.categories) if self.flagged else PASSED


class Webhook:
    name = "webhook"

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def moderate_text(self, text: str) -> Categories:
        return await self._ask({"type": "prompt", "text": text})

    async def moderate_image(self, data: bytes, media_type: str) -> Categories:
        image = {"media_type": media_type, "b64": base64.b64encode(data).decode()}
        return await self._ask({"type": "image", **image})

    async def _ask(self, question: dict[str, Any]) -> Categories:
        return await self._upstream.post(_Verdict, _Verdict.found, json=question)
