"""Moderates prompts before the queue and images after the decoder, with each moderator in order."""

import logging
from collections.abc import Awaitable, Sequence

from server.moderation.moderator import PASSED, Categories, ImageModerator, TextModerator
from server.schemas.errors import UPLOAD, ApiError, RefusedError
from server.upstream.client import UpstreamError

logger = logging.getLogger(__name__)


class Moderation:
    """If a moderator fails, the content passes with `fails_open`; else the response is 503."""

    def __init__(
        self, text: Sequence[TextModerator], images: Sequence[ImageModerator], *, fails_open: bool = False
    ) -> None:
        self._text = text
        self._images = images
        self._fails_open = fails_open

    @property
    def moderates_text(self) -> bool:
        return bool(self._text)

    @property
    def moderates_images(self) -> bool:
        return bool(self._images)

    async def check_text(self, text: str) -> None:
        """Raises RefusedError, or ApiError 503 if it fails closed."""
        for moderator in self._text:
            await self._check(moderator.name, "prompt", moderator.moderate_text(text))

    async def check_image(self, data: bytes, media_type: str) -> None:
        """As `check_text`; the 503 forbids a retry, which would generate the image again."""
        for moderator in self._images:
            await self._check(moderator.name, "image", moderator.moderate_image(data, media_type))

    async def check_upload(self, data: bytes, media_type: str) -> None:
        """The image of an edit, as `check_text`."""
        for moderator in self._images:
            await self._check(moderator.name, UPLOAD, moderator.moderate_image(data, media_type))

    async def _check(self, name: str, subject: str, verdict: Awaitable[Categories]) -> None:
        try:
            categories = await verdict
        except UpstreamError as error:
            categories = self._failed(name, subject, error)
        if categories:
            raise RefusedError(subject, categories)

    def _failed(self, name: str, subject: str, error: UpstreamError) -> Categories:
        fields = {"moderator": name, "subject": subject, "passed": self._fails_open}
        logger.warning("moderation failed: %s", error, extra={"fields": fields})
        if self._fails_open:
            return PASSED
        message = f"The {subject} could not be moderated."
        if subject in ("prompt", UPLOAD):
            raise ApiError(503, "moderation_unavailable", message, retry_after=5)
        raise ApiError(503, "moderation_unavailable", message, retry=False)
