"""The fields and images of an edit's body, multipart or JSON."""

import base64
import binascii
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, BinaryIO, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from server.edits.multipart import Part
from server.schemas.errors import ApiError, invalid

MAX_IMAGES = 16
IMAGES = ("image", "images", "image_url")
MASK = "mask"
IMAGE_URL = "image_url"  # the key of an object around a data URL
OF_TEXTS = "metadata"
BRACKETS = re.compile(r"([A-Za-z0-9_]+)\[([A-Za-z0-9_]*)\](?:\[([A-Za-z0-9_]+)\])?")
WHITE_SPACE = b"\t\n\f\r "
DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w=.+-]+)*;base64,", re.ASCII)


@dataclass(slots=True)
class Payload:
    """`fields` are all others than images."""

    fields: dict[str, Any] = field(default_factory=dict)
    images: list[BinaryIO] = field(default_factory=list)
    mask: BinaryIO | None = None

    def add_image(self, name: str, file: BinaryIO) -> None:
        """Raises ApiError 400."""
        if name == MASK:
            if self.mask is not None:
                raise _repeated(name)
            self.mask = file
        elif len(self.images) == MAX_IMAGES:
            raise invalid(f"At most {MAX_IMAGES} images are allowed.", name)
        else:
            self.images.append(file)

    def content(self) -> bytes:
        """What identifies the request: equal for bodies that differ in their boundary or encoding."""
        files = [*self.images, *([self.mask] if self.mask else [])]
        digests = [_digest(file) for file in files]
        return json.dumps([self.fields, digests, self.mask is not None], sort_keys=True).encode()


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def of_json(body: object) -> Payload:
    """Raises ApiError 400."""
    if not isinstance(body, dict):
        raise invalid("The body must be a JSON object.", None, "invalid_type")
    payload = Payload()
    for name, value in body.items():
        if name in (*IMAGES, MASK):
            for each in value if isinstance(value, list) else [value]:
                if each is not None and each != "":
                    payload.add_image(name, _file(name, each))
        else:
            payload.fields[name] = value
    return payload


def of_form(parts: Iterable[Part], model: type[BaseModel]) -> Payload:
    """The values of `model` that are not text are read as JSON. Raises ApiError 400."""
    payload = Payload()
    for part in parts:
        bracketed = BRACKETS.fullmatch(part.name)
        name = bracketed[1] if bracketed else part.name
        if name in (*IMAGES, MASK):
            if name != MASK or not _is_empty(part):
                payload.add_image(name, part.file or _file(name, _text(part)))
        elif part.file is not None:
            raise invalid("Unexpected file.", name, "unknown_parameter")
        else:
            _add_field(payload.fields, part, bracketed)
    return Payload(_typed_fields(payload.fields, model), payload.images, payload.mask)


def _is_empty(part: Part) -> bool:
    """As browsers send a file that was not chosen."""
    if part.file is None:
        return not part.text
    size = part.file.seek(0, io.SEEK_END)
    part.file.seek(0)
    return size == 0


def _add_field(fields: dict[str, Any], part: Part, bracketed: "re.Match[str] | None") -> None:
    """`a[]` is an entry of a list, `a[b]` of an object, `a[][b]` and `a[0][b]` of an object in a list."""
    text = _text(part)
    if bracketed is None:
        if part.name in fields:
            raise _repeated(part.name)
        fields[part.name] = text
    elif bracketed[3]:
        _add_to_object(_container(fields, bracketed[1], list), part.name, bracketed[2], bracketed[3], text)
    elif not bracketed[2]:
        _container(fields, bracketed[1], list).append(text)
    elif bracketed[2] in _container(fields, bracketed[1], dict):
        raise _repeated(part.name)
    else:
        fields[bracketed[1]][bracketed[2]] = text


def _add_to_object(entries: list[Any], name: str, index: str, key: str, text: str) -> None:
    """Without an index, a key that the last object has begins the next one. Raises ApiError 400."""
    is_next = not entries or key in entries[-1] if index == "" else index == str(len(entries))
    if is_next:
        entries.append({})
    place = index or str(len(entries) - 1)
    if not place.isdigit() or int(place) >= len(entries) or not isinstance(entries[int(place)], dict):
        raise invalid(f"`{name}` is not the next object of the list.", name)
    if key in entries[int(place)]:
        raise _repeated(name)
    entries[int(place)][key] = text


def _container(fields: dict[str, Any], name: str, kind: type) -> Any:
    found = fields.setdefault(name, kind())
    if not isinstance(found, kind):
        raise _repeated(name)
    return found


def _repeated(name: str) -> ApiError:
    return invalid(f"`{name}` was sent more than once.", name)


def _text(part: Part) -> str:
    try:
        return part.text.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(f"`{part.name}` is not valid UTF-8.", part.name) from None


def _typed_fields(fields: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """An object of `OF_TEXTS` keeps its texts."""
    known = model.model_fields
    kept = {name for name, info in known.items() if _is_text(info)}
    kept |= {OF_TEXTS} if isinstance(fields.get(OF_TEXTS), dict) else set()
    return {
        name: value if name in kept or name not in known else _typed(value) for name, value in fields.items()
    }


def _is_text(info: FieldInfo) -> bool:
    parts = get_args(info.annotation) or (info.annotation,)
    return all(part in (str, NoneType) or get_origin(part) is Literal for part in parts)


def _typed(value: Any) -> Any:
    """The JSON in a text; the text itself if it is none, which validation then refuses."""
    if isinstance(value, list):
        return [_typed(each) for each in value]
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    try:
        return from_json(value.lower() if value in ("True", "False") else value, allow_inf_nan=False)
    except ValueError:
        return value


def _file(name: str, value: object) -> BinaryIO:
    """An image as base64 or a data URL, perhaps in an object with `image_url`. ASCII white space between
    characters of base64 is ignored. Raises ApiError 400."""
    if isinstance(value, dict) and value.keys() == {IMAGE_URL}:
        value = value[IMAGE_URL]
    if not isinstance(value, str):
        raise invalid(f"`{name}` must be base64 or a data URL.", name, "invalid_type")
    if value.startswith(("http://", "https://")):
        raise invalid(f"`{name}` must be base64 or a data URL: this server downloads no images.", name)
    prefix = DATA_URL.match(value[:200])
    try:
        encoded = value[prefix.end() if prefix else 0 :].encode("ascii").translate(None, WHITE_SPACE)
        return io.BytesIO(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        raise invalid(f"`{name}` is neither base64 nor a base64 data URL.", name) from None
