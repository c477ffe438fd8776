"""Wire types of the requests of `POST /v1/images/edits` and `/v1/images/variations`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from server.edits.placement import Fit, Margins
from server.schemas.dialects import FIELDS, Ignore, Refuse, Rule
from server.schemas.errors import invalid
from server.schemas.images import ImageRequest, JobFields

MAX_MARGIN = 8192
MAX_FEATHER = 256
DEFAULT_FEATHER = 8
STRENGTH, MASKED_STRENGTH, VARIATION_STRENGTH = 0.7, 1.0, 0.5
VARIATION_PROMPT = "A variation of this picture."
# Of the fields that an image request without images refuses.
SERVED = ("image", "image_url", "mask", "strength")

Margin = Annotated[int, Field(ge=0, le=MAX_MARGIN)]


class Expand(BaseModel):
    """Pixels of the image that are added on each side, and painted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0


class EditRequest(ImageRequest):
    """The fields of an edit besides its images. `size` is by default that of the image, if the model allows
    it, or else the allowed size of its shape with about the default area."""

    dialects: ClassVar[Mapping[str, Rule]] = {
        **{name: rule for name, rule in FIELDS.items() if name not in SERVED},
        "input_fidelity": Ignore("Use `strength` to choose how much of the image is kept."),
        "markup": Refuse("Markup is not supported; send `mask`."),
    }

    strength: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How much is changed: 0 returns the image, 1 ignores what is painted over. Default "
        f"{STRENGTH}; {MASKED_STRENGTH:g} with a mask or `expand`.",
    )
    image_weight: int | None = Field(
        None, ge=1, le=100, description="`strength` as 1 - image_weight / 100; send one of the two."
    )
    mask_mode: Literal["auto", "alpha", "grey"] | None = Field(
        None,
        description="What is painted: where the mask is transparent (alpha), in proportion to its brightness "
        "(grey), or the first if any of it is transparent, else the second (auto, the default). The others "
        "need `mask`.",
    )
    feather: int | None = Field(
        None,
        ge=0,
        le=MAX_FEATHER,
        description="Width of the soft edge around what is painted, in pixels of the result. Default "
        f"{DEFAULT_FEATHER}. Needs `mask`, `expand` or an image with transparent pixels.",
    )
    fit: Fit | None = Field(
        None,
        description="If the image has another shape than the result: cut it (cover, the default), continue "
        "its edges (contain), or distort it (stretch).",
    )
    expand: Expand | None = Field(
        None,
        description=f"Enlarge the image before it is fitted, by at most {MAX_MARGIN} of its pixels on each "
        "side; what is added is painted.",
    )

    @property
    def margins(self) -> Margins:
        return Margins(**self.expand.model_dump()) if self.expand else Margins()

    @property
    def wants_own_size(self) -> bool:
        """No size was sent, so that of the image is used."""
        sizes = (self.size, self.aspect_ratio)
        return all(size in (None, "auto") for size in sizes) and self.width is None and self.height is None

    def wanted_strength(self, is_masked: bool) -> float:
        """Raises ApiError 400."""
        if self.strength is not None and self.image_weight is not None:
            raise self.named_as_sent(invalid("Send one of `strength` and `image_weight`.", "image_weight"))
        if self.image_weight is not None:
            return 1 - self.image_weight / 100
        if self.strength is not None:
            return self.strength
        return MASKED_STRENGTH if is_masked else STRENGTH


class EditJobRequest(JobFields, EditRequest):
    """An edit that runs as a job. `stream` does not apply."""


def edit_request(image_request: type[ImageRequest]) -> type[EditRequest]:
    """EditRequest with the limits of `image_request`."""
    # The fields of the first base take precedence.
    bases: Any = (image_request, EditRequest)
    return create_model("EditRequest", __base__=bases, __doc__=EditRequest.__doc__)


def edit_job_request(request: type[EditRequest]) -> type[EditJobRequest]:
    """EditJobRequest with the limits of `request`."""
    bases: Any = (request, EditJobRequest)
    return create_model("EditJobRequest", __base__=bases, __doc__=EditJobRequest.__doc__)
