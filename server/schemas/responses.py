"""Wire types of the responses of `POST /v1/images` and `POST /v1/captions/validate`."""

from typing import Any

from pydantic import BaseModel, Field

from server.schemas.images import OutputFormat
from server.schemas.issue import Issue


class ImageData(BaseModel):
    """One image: base64, or a URL if `response_format` is `url`."""

    b64_json: str | None = None
    url: str | None = Field(None, description="Expires after `url_ttl_seconds` of the server.")
    seed: int
    revised_prompt: str | None = Field(None, description="The caption that the prompt was expanded into.")


class InputTokensDetails(BaseModel):
    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Prompt tokens and image tokens, one per 16x16 pixels."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class ImagesResponse(BaseModel):
    """The JSON response."""

    id: str
    created: int
    model: str
    data: list[ImageData]
    output_format: OutputFormat
    quality: str
    size: str
    background: str
    usage: Usage
    warnings: list[Issue] | None = Field(None, description="Warnings about the caption or the request.")


class CaptionReport(BaseModel):
    """A caption in its normal form, and `prompt` as the model reads it. Both are null for plain text."""

    valid: bool
    caption: dict[str, Any] | None
    prompt: str | None
    warnings: list[Issue]
