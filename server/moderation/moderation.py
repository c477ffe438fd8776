"""Prompts before the queue and images after the decoder, past every judge in the order they were named."""

import logging
from collections.abc import Awaitable, Sequence

from server.moderation.judge import PASSED, Categories, ImageJudge, TextJudge
from server.schemas.errors import ApiError, RefusedError
from server.upstream.client import UpstreamError

logger = logging.getLogger(__name__)


class Moderation:
    """`fails_open`: what a judge cannot judge passes; else it is a 503."""

    def __init__(
        self, text: Sequence[TextJudge], images: Sequence[ImageJudge], *, fails_open: bool = False
    ) -> None:
        self._text = text
        self._images = images
        self._fails_open = fails_open

    @property
    def judges_text(self) -> bool:
        return bool(self._text)

    @property
    def judges_images(self) -> bool:
        return bool(self._images)

    async def check_text(self, text: str) -> None:
        """Raises RefusedError, or ApiError 503 if it fails closed."""
        for judge in self._text:
            await self._check(judge.name, "prompt", judge.judge_text(text))

    async def check_image(self, data: bytes, media_type: str) -> None:
        """The same; a retry would draw the image again."""
        for judge in self._images:
            await self._check(judge.name, "image", judge.judge_image(data, media_type))

    async def _check(self, name: str, subject: str, judgement: Awaitable[Categories]) -> None:
        try:
            categories = await judgement
        except UpstreamError as error:
            categories = self._failed(name, subject, error)
        if categories:
            raise RefusedError(subject, categories)

    def _failed(self, name: str, subject: str, error: UpstreamError) -> Categories:
        fields = {"judge": name, "subject": subject, "passed": self._fails_open}
        logger.warning("moderation failed: %s", error, extra={"fields": fields})
        if self._fails_open:
            return PASSED
        message = f"The {subject} could not be moderated."
        if subject == "prompt":
            raise ApiError(503, "moderation_unavailable", message, retry_after=5)
        raise ApiError(503, "moderation_unavailable", message, retry=False)
