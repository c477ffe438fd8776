"""The prompt that the model reads: plain text or a caption."""

from dataclasses import dataclass, replace
from typing import Any

from server.captions.caption import Caption, CaptionTooLongError
from server.captions.unwrap import looks_like_json
from server.schemas.errors import CaptionError, invalid
from server.schemas.images import MAX_PROMPT_CHARACTERS, PromptFields
from server.schemas.issue import Issue

NOT_A_CAPTION = Issue(
    code="not_a_caption",
    path="",
    message="Read as plain text: not a JSON object with compositional_deconstruction.",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`words` is the text to moderate, `plain` the prompt that a caption was expanded from.

    `deviates` tells whether the caption has faults.
    """

    text: str
    words: str
    caption: dict[str, Any] | None = None
    plain: str | None = None
    warnings: tuple[Issue, ...] = ()
    deviates: bool = False

    @classmethod
    def of_caption(cls, caption: Caption) -> "Prompt":
        warnings = (*caption.faults, *caption.remarks)
        return cls(caption.text, caption.words, caption.value, None, warnings, bool(caption.faults))

    def expanded(self, caption: Caption) -> "Prompt":
        """Replaced by a caption; the warnings so far stay."""
        drawn = Prompt.of_caption(caption)
        return replace(drawn, plain=self.text, warnings=(*self.warnings, *drawn.warnings))

    def facts(self) -> dict[str, str]:
        """For the metadata and the log: the prompt as sent and, if it was expanded, the caption."""
        return {"prompt": self.text} if self.plain is None else {"prompt": self.plain, **self.revised()}

    def revised(self) -> dict[str, str]:
        """The response's field, if the prompt was expanded."""
        return {} if self.plain is None else {"revised_prompt": self.text}

    def drawn(self, revised: str | None, warnings: tuple[Issue, ...]) -> "Prompt":
        """As it was drawn for an identical request."""
        if revised is None:
            return replace(self, warnings=warnings)
        return replace(self, text=revised, plain=self.text, warnings=warnings)

    def warned(self, code: str, message: str) -> "Prompt":
        """The same with a warning about the request."""
        return self.with_warnings(Issue(code=code, path=None, message=message))

    def with_warnings(self, *warnings: Issue) -> "Prompt":
        return replace(self, warnings=(*self.warnings, *warnings))


def read_prompt(wanted: PromptFields) -> Prompt:
    """The prompt of a request. Raises ApiError."""
    if (wanted.prompt is None) == (wanted.json_prompt is None):
        raise invalid("Send exactly one of `prompt` and `json_prompt`.", "prompt")
    param = "prompt" if wanted.json_prompt is None else "json_prompt"
    caption, text = _read_caption(wanted, param), wanted.prompt or ""
    faults = caption.faults if caption else _broken(text)
    if faults and wanted.caption == "strict":
        raise CaptionError(faults, param)
    return Prompt.of_caption(caption) if caption else Prompt(text, text, warnings=faults)


def _read_caption(wanted: PromptFields, param: str) -> Caption | None:
    """None for plain text. Raises ApiError if the caption is too long or a number is out of range."""
    try:
        return (
            Caption.parse(wanted.prompt or "")
            if wanted.json_prompt is None
            else Caption.of(wanted.json_prompt)
        )
    except CaptionTooLongError as error:
        message = f"The caption has {error.count} characters; the limit is {MAX_PROMPT_CHARACTERS}."
        raise invalid(message, param, "string_above_max_length") from None
    except ValueError:
        raise invalid("A number of the caption is out of range.", param) from None


def _broken(text: str) -> tuple[Issue, ...]:
    """Text that begins like a JSON object was meant to be a caption."""
    return (NOT_A_CAPTION,) if looks_like_json(text) else ()
