"""Field names and values of other image APIs: what each maps to, or why it is ignored or refused.

docs/http.md, "Compatibility", is this table for readers; a test compares the two.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.schemas.errors import ApiError, invalid
from server.schemas.issue import Issue


class Use(NamedTuple):
    """Another name of `field`."""

    field: str


class Ignore(NamedTuple):
    """Accepted without effect, with the warning `parameter_ignored`."""

    reason: str


class Refuse(NamedTuple):
    """An error with this message."""

    reason: str


class Merge(NamedTuple):
    """An object whose fields are the request's."""

    description: str


Rule = Use | Ignore | Refuse | Merge
NESTED = "extra_body"
PROMPTS = ("prompt", "json_prompt", "text_prompt")
_NO_IMAGE_INPUT = Refuse("This endpoint takes no images; send them to `/v1/images/edits`.")
_NO_STYLE = Ignore("The model has no styles; describe the style in `prompt` or in a caption.")
_NO_SAMPLER = Ignore("The model has one sampler; `mu` and `std` set its noise schedule.")
_NO_ANIMATION = Refuse("Animations are not supported; `output_format` is png, jpeg or webp.")
_NO_VECTORS = Refuse("Vector images are not supported; `output_format` is png, jpeg or webp.")
_NO_EXPANSION = Ignore("Use `magic_prompt` to expand a prompt.")

FIELDS: dict[str, Rule] = {
    NESTED: Merge(
        "An argument of the Python client that was sent as a field; its fields count as the request's."
    ),
    "text_prompt": Use("prompt"),
    "steps": Use("num_inference_steps"),
    "num_steps": Use("num_inference_steps"),
    "cfg": Use("guidance_scale"),
    "cfg_scale": Use("guidance_scale"),
    "guidance": Use("guidance_scale"),
    "true_cfg_scale": Use("guidance_scale"),
    "num_images": Use("n"),
    "num_images_per_prompt": Use("n"),
    "num_outputs": Use("n"),
    "batch_size": Use("n"),
    "resolution": Use("size"),
    "image_size": Use("size"),
    "aspectRatio": Use("aspect_ratio"),
    "magic_prompt_option": Use("magic_prompt"),
    "negative_prompt": Ignore("The model has no negative prompt; say in `prompt` what to draw instead."),
    "complexity": Ignore("Use `quality` or `preset` to choose the computation per image."),
    "style": _NO_STYLE,
    "style_type": _NO_STYLE,
    "style_preset": _NO_STYLE,
    "style_codes": _NO_STYLE,
    "sampler": _NO_SAMPLER,
    "sampler_name": _NO_SAMPLER,
    "scheduler": _NO_SAMPLER,
    "prompt_extend": _NO_EXPANSION,
    "expand_prompt": _NO_EXPANSION,
    "prompt_upsampling": _NO_EXPANSION,
    "enable_copyright_detection": Ignore("The operator of the server configures moderation."),
    "frame_count": _NO_ANIMATION,
    "frame_duration_ms": _NO_ANIMATION,
    "svg": _NO_VECTORS,
    "image": _NO_IMAGE_INPUT,
    "image_url": _NO_IMAGE_INPUT,
    "mask": _NO_IMAGE_INPUT,
    "strength": _NO_IMAGE_INPUT,
    "color_palette": Refuse("Put `color_palette` into `style_description` of a caption in `json_prompt`."),
}

_BEST = dict.fromkeys(("xhigh", "max"), "high")
_UPPER_CASE = {"AUTO": "auto", "ON": "on", "OFF": "off", "Auto": "auto", "On": "on", "Off": "off"}
_FORMATS = {
    "jpg": "jpeg",
    "JPG": "jpeg",
    "JPEG": "jpeg",
    "PNG": "png",
    "WEBP": "webp",
}
VALUES: dict[str, Mapping[str, str | Refuse]] = {
    "quality": _BEST,
    "rendering_speed": {"FLASH": "TURBO", "BALANCED": "DEFAULT"},
    "magic_prompt": _UPPER_CASE,
    "output_format": {**_FORMATS, "gif": _NO_ANIMATION, "svg": _NO_VECTORS},
    "mask_mode": {"gray": "grey"},
    "background": {"transparent": Refuse("Transparent backgrounds are not supported; use `opaque`.")},
}

# Fields whose numbers may also be strings, as forms send them.
INTEGERS = (
    "n",
    "width",
    "height",
    "num_inference_steps",
    "seed",
    "output_compression",
    "partial_images",
    "image_weight",
    "feather",
)
NUMBERS = ("guidance_scale", "mu", "std", "strength")
INTEGER = "-?[0-9]{1,20}"
NUMBER = r"-?[0-9]{1,20}(\.[0-9]{1,20})?"


@dataclass(slots=True)
class Translation:
    """`fields` by this API's names. `sent_as` has the client's name of each field that it named otherwise."""

    fields: dict[str, Any] = field(default_factory=dict)
    sent_as: dict[str, str] = field(default_factory=dict)
    warnings: list[Issue] = field(default_factory=list)


def translate(body: Mapping[str, Any], known: Collection[str], rules: Mapping[str, Rule]) -> Translation:
    """Apply `rules` to a request with `known` fields. Raises ApiError 400 at the first unusable field."""
    result = Translation()
    for name, value in _flat(body) if NESTED in rules else body.items():
        rule = Use(name) if name in known else rules.get(name)
        if rule is None or isinstance(rule, Merge):
            raise unknown(name, (*known, *rules))
        if not _is_absent(value):
            _apply(rule, name, value, result)
    return result


def unknown(name: str, known: Collection[str]) -> ApiError:
    """A 400 that suggests the known field with the most similar name."""
    close = difflib.get_close_matches(name[:64], known, n=1, cutoff=0.75)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    return invalid(f"Unknown parameter.{hint}", name[:64] or None, "unknown_parameter")


def _flat(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the request, then those inside `extra_body`."""
    nested = body.get(NESTED)
    if not (_is_absent(nested) or isinstance(nested, dict)):
        raise invalid("Input should be a valid dictionary.", NESTED, "invalid_type")
    yield from ((name, value) for name, value in body.items() if name != NESTED)
    for name, value in (nested or {}).items():
        if name in PROMPTS:
            raise invalid(f"Send `{name}` outside `{NESTED}`.", NESTED)
        yield name, value


def _is_absent(value: object) -> bool:
    """Null, and the empty string of a form that was not filled in."""
    return value is None or value == ""


def _apply(rule: Use | Ignore | Refuse, name: str, value: Any, result: Translation) -> None:
    match rule:
        case Use(target):
            _use(target, name, _read(target, name, value), result)
        case Ignore(reason):
            if not (isinstance(value, str) and not value.strip()):
                message = f"`{name}` is ignored. {reason}"
                result.warnings.append(Issue(code="parameter_ignored", path=None, message=message))
        case Refuse(reason):
            raise invalid(reason, name, "unknown_parameter")


def _use(target: str, name: str, value: Any, result: Translation) -> None:
    if target in result.fields and result.fields[target] != value:
        other = result.sent_as.get(target, target)
        raise invalid(f"`{name}` contradicts `{other}`, which sets the same field; send one.", name)
    result.fields[target] = value
    if name != target:
        result.sent_as[target] = name


def _read(target: str, name: str, value: Any) -> Any:
    """The value in this API's spelling. Raises ApiError for one that is refused."""
    if isinstance(value, str) and target in VALUES:
        known = VALUES[target].get(value, value)
        if isinstance(known, Refuse):
            raise invalid(known.reason, name)
        return known
    if target in INTEGERS:
        return _integer(value)
    if target in NUMBERS and isinstance(value, str) and re.fullmatch(NUMBER, value):
        return float(value)
    return value


def _integer(value: Any) -> Any:
    """1 for 1.0 and "1"; anything else unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch(INTEGER, value) else value
