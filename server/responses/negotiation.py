"""Selects the response format by `stream` and `Accept`."""

from typing import Literal, NamedTuple

from starlette.datastructures import Headers

from server.schemas.errors import ApiError, invalid
from server.schemas.images import ImageRequest, OutputFormat

Kind = Literal["json", "image", "events"]


class ResponseFormat(NamedTuple):
    """`output_format` is that of an image file; `with_progress` sends progress as events; `as_url` sends URLs
    of the images instead of base64."""

    kind: Kind
    output_format: OutputFormat | None = None
    with_progress: bool = False
    as_url: bool = False


JSON, EVENTS = ResponseFormat("json"), ResponseFormat("events")
# By media type; of formats that a wildcard makes equally acceptable, the first is selected.
FORMATS = {
    "application/json": JSON,
    "image/png": ResponseFormat("image", "png"),
    "image/jpeg": ResponseFormat("image", "jpeg"),
    "image/webp": ResponseFormat("image", "webp"),
    "text/event-stream": EVENTS,
}


class _Range(NamedTuple):
    """The weight of a media range and its position in the header."""

    q: float
    position: int

    @property
    def rank(self) -> tuple[float, int]:
        """The least is the most preferred."""
        return -self.q, self.position


def negotiate(headers: Headers, wanted: ImageRequest) -> ResponseFormat:
    """Raises ApiError 406 if no type in `Accept` can be served, 400 if a field contradicts the format."""
    selected = EVENTS if wanted.stream else _select(",".join(headers.getlist("accept")) or "*/*", wanted)
    if selected.kind == "image" and (wanted.n or 1) > 1:
        raise invalid("`n` must be 1 if the response is one image file.", "n")
    if selected.kind == "image" and wanted.response_format == "url":
        raise invalid("`url` needs a JSON response or an event stream.", "response_format")
    if selected.kind != "events" and wanted.partial_images:
        raise invalid("`partial_images` needs `stream`.", "partial_images")
    as_url = wanted.response_format == "url"
    return selected._replace(with_progress=bool(wanted.progress), as_url=as_url)


def _select(accept: str, wanted: ImageRequest) -> ResponseFormat:
    """The acceptable format with the highest weight; of several, the first in `Accept`.

    JSON, if it is acceptable, where the most preferred type is neither an image nor an event stream (such a
    list is the default of a browser or an HTTP library), and where one image file cannot hold `n` images or
    their URLs.
    """
    ranges = _parse(accept)
    acceptable = {
        media_type: ranges[matching]
        for media_type, response_format in FORMATS.items()
        if wanted.output_format in (None, response_format.output_format or wanted.output_format)
        and (matching := _matching(media_type, ranges))
        and ranges[matching].q > 0
    }
    if not acceptable:
        types = ", ".join(FORMATS)
        raise ApiError(406, "not_acceptable", f"The response types are {types}.", param="Accept")
    selected = FORMATS[min(acceptable, key=lambda media_type: acceptable[media_type].rank)]
    is_too_small = selected.kind == "image" and ((wanted.n or 1) > 1 or wanted.response_format == "url")
    is_json = "application/json" in acceptable and (is_too_small or not _is_choice(ranges))
    return JSON if is_json else selected


def _is_choice(ranges: dict[str, _Range]) -> bool:
    preferred = min(ranges, key=lambda media_range: ranges[media_range].rank)
    return preferred.startswith("image/") or preferred == "text/event-stream"


def _matching(media_type: str, ranges: dict[str, _Range]) -> str | None:
    """The most specific range that covers the type."""
    covering = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((media_range for media_range in covering if media_range in ranges), None)


def _parse(accept: str) -> dict[str, _Range]:
    """Media ranges without their parameters. The JDK sends `*` for `*/*`."""
    ranges: dict[str, _Range] = {}
    for position, part in enumerate(accept.lower().split(",")):
        name, *parameters = (text.strip() for text in part.split(";"))
        ranges.setdefault("*/*" if name == "*" else name, _Range(_weight(parameters), position))
    return ranges


def _weight(parameters: list[str]) -> float:
    """0 if it is not a number from 0 to 1."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return q if 0 <= (q := float(value)) <= 1 else 0.0
            except ValueError:
                return 0.0
    return 1.0
