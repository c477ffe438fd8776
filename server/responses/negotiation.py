"""`Accept` to one of the three ways to answer."""

from typing import Literal, NamedTuple

from starlette.datastructures import Headers

from server.schemas.errors import ApiError, invalid
from server.schemas.images import ImageRequest, OutputFormat

Kind = Literal["json", "image", "events"]
FORMATS: dict[str, OutputFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}


class Answer(NamedTuple):
    """How to answer, and the file format that `Accept` asks for, if it names one."""

    kind: Kind
    output_format: OutputFormat | None = None


def negotiate(headers: Headers, wanted: ImageRequest) -> Answer:
    """Raises ApiError 406 if no type of `Accept` can be served, 400 if a field does not go with it."""
    accept = ",".join(headers.getlist("accept"))
    answer = Answer("events") if wanted.stream else _acceptable(accept, wanted.output_format)
    if answer.kind == "image" and (wanted.n or 1) > 1:
        raise invalid("`n` must be 1 where the answer is one image.", "n")
    if answer.kind != "events" and wanted.partial_images:
        raise invalid("`partial_images` needs `stream`.", "partial_images")
    return answer


def _acceptable(accept: str, wanted: OutputFormat | None) -> Answer:
    for media_type in _preferred(accept or "*/*"):
        answer = _answer(media_type)
        if answer and (wanted is None or answer.output_format in (None, wanted)):
            return answer
    raise ApiError(
        406,
        "not_acceptable",
        "Acceptable are application/json, text/event-stream and image/png, image/jpeg or image/webp.",
        param="Accept",
    )


def _answer(media_type: str) -> Answer | None:
    if media_type in ("application/json", "application/*", "*/*"):
        return Answer("json")
    if media_type in ("text/event-stream", "text/*"):
        return Answer("events")
    if media_type == "image/*":
        return Answer("image")
    return Answer("image", FORMATS[media_type]) if media_type in FORMATS else None


def _preferred(accept: str) -> list[str]:
    """Media types by falling q, those of q=0 left out; ties keep their order."""
    ranges = [part.split(";") for part in accept.lower().split(",")]
    weighted = [(_q(parameters), media_type.strip()) for media_type, *parameters in ranges]
    return [media_type for q, media_type in sorted(weighted, key=lambda pair: -pair[0]) if q > 0]


def _q(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
