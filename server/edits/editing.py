"""From the upload of an edit to the parameters of its images."""

import asyncio
from dataclasses import replace
from typing import Any, TypeVar

from engine.config.model_config import ModelConfig
from engine.request import SourceImage
from server.edits.decoders import Decoders, Fitted, Opened, Session
from server.edits.payload import Payload
from server.edits.placement import place
from server.edits.request import (
    DEFAULT_FEATHER,
    VARIATION_PROMPT,
    VARIATION_STRENGTH,
    EditJobRequest,
    EditRequest,
    edit_job_request,
    edit_request,
)
from server.edits.uploads import Uploads
from server.generation.parameters import Parameters, ServedModel, resolve
from server.schemas import sizes
from server.schemas.dialects import PROMPTS
from server.schemas.errors import ApiError, invalid
from server.schemas.images import ImageRequest, OutputFormat
from server.schemas.issue import Issue
from server.schemas.sizes import Size
from server.settings.settings import Settings

T = TypeVar("T", bound=EditRequest)
# Between the shapes of an image and its mask, from rounding.
SHAPE_TOLERANCE = 0.01
STRENGTHS = ("strength", "image_weight")
ANIMATION = Issue(
    code="animation_ignored", path=None, message="`image` is animated; its first frame is used."
)
OTHER_IMAGES = Issue(
    code="images_ignored", path=None, message="The model takes one image; the first of `image` is used."
)


class Edits:
    """The edits of a server: whether it has them, their request models, uploads and decoders."""

    def __init__(self, settings: Settings, config: ModelConfig, image_request: type[ImageRequest]) -> None:
        self.request_model: type[EditRequest] = edit_request(image_request)
        self.job_model: type[EditJobRequest] = edit_job_request(self.request_model)
        self.uploads = Uploads(settings, self.job_model)
        self._decoders = Decoders(settings.image_threads)
        self._is_on = settings.edits == "on"
        self._can_edit = config.can_edit

    @property
    def is_on(self) -> bool:
        return self._is_on and self._can_edit

    def check(self) -> None:
        """Raises ApiError 404 if the server edits no images."""
        if not self.is_on:
            reason = (
                "its checkpoint has no VAE encoder" if self._is_on else "it was started with `--edits off`"
            )
            raise ApiError(404, "edits_not_enabled", f"This server takes no images as input: {reason}.")

    def close(self) -> None:
        self._decoders.close()

    async def parameters(
        self,
        payload: Payload,
        wanted: EditRequest,
        model: ServedModel,
        accepted: OutputFormat | None = None,
    ) -> Parameters:
        """Decode the image and fit it to the size of the result. Raises ApiError."""
        _check_mask_mode(payload, wanted)
        async with self._decoders.session() as session:
            image = await _open(session, payload)
            parameters = await asyncio.to_thread(resolve, wanted, _sized(model, wanted, image), accepted)
            fitted = await _fit(session, wanted, image, parameters)
        _check_feather(wanted, fitted)
        strength = wanted.wanted_strength(is_masked=fitted.mask is not None)
        return replace(
            parameters,
            source=SourceImage(fitted.rgb, fitted.mask, strength, fitted.fingerprint),
            prompt=parameters.prompt.with_warnings(*_warnings(payload, image)),
        )


def read(payload: Payload, model: type[T], is_variation: bool) -> T:
    """The fields of an edit. Those of a variation get its own defaults, so that with one `Idempotency-Key` it
    is not taken for an edit. Raises ApiError 400."""
    if is_variation:
        payload.fields = _of_variation(payload.fields)
    return model.read(payload.fields)


def _of_variation(fields: dict[str, Any]) -> dict[str, Any]:
    if not any(fields.get(name) for name in PROMPTS):
        fields = {**fields, "prompt": VARIATION_PROMPT, "magic_prompt": fields.get("magic_prompt") or "off"}
    if all(fields.get(name) in (None, "") for name in STRENGTHS):
        fields = {**fields, "strength": VARIATION_STRENGTH}
    return fields


def _check_mask_mode(payload: Payload, wanted: EditRequest) -> None:
    """Raises ApiError 400. What asks for nothing else than the default is accepted."""
    if wanted.mask_mode not in (None, "auto") and payload.mask is None:
        raise invalid("`mask_mode` says how `mask` is read: send `mask` too.", "mask_mode")


def _check_feather(wanted: EditRequest, fitted: Fitted) -> None:
    """Raises ApiError 400. 0 asks for no edge, and there is none."""
    if wanted.feather and fitted.mask is None and not any(wanted.margins):
        reason = "without `mask`, `expand` or transparent pixels in `image`, everything is painted"
        raise invalid(f"`feather` is the edge of the painted part, but {reason}.", "feather")


async def _open(session: Session, payload: Payload) -> Opened:
    """Raises ApiError 400."""
    if not payload.images:
        raise invalid("`image` is required: a file, base64 or a data URL.", "image")
    image = await session.open("image", payload.images[0])
    if payload.mask:
        mask = (await session.open("mask", payload.mask)).size
        if abs(mask.width / mask.height * image.size.height / image.size.width - 1) > SHAPE_TOLERANCE:
            raise invalid(f"`mask` must have the shape of `image`: {image.size}, not {mask}.", "mask")
    return image


def _sized(model: ServedModel, wanted: EditRequest, image: Opened) -> ServedModel:
    """The model with the size of the image as its default, where no size was sent."""
    if not wanted.wants_own_size:
        return model
    config, own = model.config, wanted.margins.around(image.size)
    if not sizes.is_allowed(own, config.limits):
        own = sizes.nearest(sizes.of_ratio(own, config.default_width * config.default_height), config.limits)
    return replace(model, config=replace(config, default_width=own.width, default_height=own.height))


async def _fit(session: Session, wanted: EditRequest, image: Opened, parameters: Parameters) -> Fitted:
    """Raises ApiError 400."""
    size = Size(parameters.width, parameters.height)
    placement = place(image.size, wanted.margins, size, wanted.fit or "cover")
    feather = DEFAULT_FEATHER if wanted.feather is None else wanted.feather
    return await session.fit(placement, wanted.mask_mode or "auto", feather, any(wanted.margins))


def _warnings(payload: Payload, image: Opened) -> tuple[Issue, ...]:
    animation = (ANIMATION,) if image.is_animated else ()
    return (*animation, OTHER_IMAGES) if len(payload.images) > 1 else animation
