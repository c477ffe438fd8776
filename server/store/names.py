"""Names of stored files: `img-<id>-<index>-<expires>.png`, with the time of deletion in Unix seconds."""

import re

from server.schemas.images import OutputFormat

NAME = re.compile(r"([A-Za-z0-9-]{1,80}-[0-9]{1,3})-([0-9]{9,11})\.(png|jpeg|webp)")


def file_name(owner: str, image_index: int, expires: int, output_format: OutputFormat) -> str:
    """`owner` is the id of the request or job."""
    return f"{owner}-{image_index}-{expires}.{output_format}"


def is_name(text: str) -> bool:
    """Names are plain: no separators, no dots but the one before the format."""
    return NAME.fullmatch(text) is not None


def expiry(name: str) -> int:
    """Unix seconds. Raises ValueError."""
    return int(_match(name)[2])


def media_type(name: str) -> str:
    """Raises ValueError."""
    return f"image/{_match(name)[3]}"


def download_name(name: str) -> str:
    """Without the time. Raises ValueError."""
    match = _match(name)
    return f"{match[1]}.{match[3]}"


def _match(name: str) -> re.Match[str]:
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError("not the name of a stored file")
    return match
