"""Parses `multipart/form-data` as it arrives, with limits on its parts."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.schemas.errors import ApiError, invalid

MAX_PARTS = 200
MAX_NAME_CHARACTERS = 64
SPOOLED_BYTES = 1 << 20  # of a file, before it is written to disk
MAX_BOUNDARY_BYTES = 70  # RFC 2046

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what the client is told


@dataclass(slots=True)
class Part:
    """A field with its `text`, or a file."""

    name: str = ""
    text: bytearray = field(default_factory=bytearray)
    file: BinaryIO | None = None


class FormReader:
    """Call `write` with each piece, then `finish`, and `close` in the end, which deletes the files.

    Both raise ApiError 400 or 413 that names the part.
    """

    def __init__(self, content_type: str, max_text_bytes: int) -> None:
        """`max_text_bytes` limits the text of all fields together. Raises ApiError 400."""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
            message = f"A multipart body needs a boundary of 1 to {MAX_BOUNDARY_BYTES} characters."
            raise invalid(message, "Content-Type")
        self.parts: list[Part] = []
        self._text_left = self._max_text_bytes = max_text_bytes
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._name_of_header,
                "on_header_value": self._value_of_header,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_head,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:  # also beyond its limits of headers
            raise _malformed(f"is malformed at part {len(self.parts)}: {error}") from None

    def finish(self) -> list[Part]:
        """All parts, their files at the start."""
        if not self._is_complete:
            raise _malformed("ends early")
        for file in self._files():
            file.seek(0)
        return self.parts

    def close(self) -> None:
        for file in self._files():
            file.close()

    def _files(self) -> Iterator[BinaryIO]:
        return (part.file for part in self.parts if part.file)

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise invalid(f"The body has more than {MAX_PARTS} parts.", None, "too_many_parts")
        self.parts.append(Part())
        self._disposition = b""

    def _name_of_header(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _value_of_header(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _end_header(self) -> None:
        name, value = map(bytes, self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        for each in self._header:
            each.clear()

    def _end_head(self) -> None:
        kind, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            message = f"Part {len(self.parts)} needs a name of 1 to {MAX_NAME_CHARACTERS} characters."
            raise invalid(message, None, "invalid_multipart")
        part = self.parts[-1]
        part.name = name
        if b"filename" in options or b"filename*" in options:
            part.file = cast(BinaryIO, tempfile.SpooledTemporaryFile(SPOOLED_BYTES))  # noqa: SIM115

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if part.file:
            part.file.write(data[start:end])
            return
        self._text_left -= end - start
        if self._text_left < 0:
            message = f"The text of all parts exceeds {self._max_text_bytes} bytes at part `{part.name}`."
            raise ApiError(413, "body_too_large", message, param=part.name)
        part.text += data[start:end]

    def _end(self) -> None:
        self._is_complete = True


def _malformed(reason: str) -> ApiError:
    return invalid(f"The multipart body {reason.rstrip('.')}.", None, "invalid_multipart")
