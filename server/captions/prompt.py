"""What the model is going to read, as text or as a caption."""

from dataclasses import dataclass, replace
from typing import Any

from server.captions.caption import Caption, CaptionTooLongError
from server.schemas.errors import CaptionError, invalid
from server.schemas.images import MAX_PROMPT_CHARACTERS, PromptFields
from server.schemas.issue import Issue

NOT_A_CAPTION = Issue(
    code="not_a_caption", path="", message="Plain text: no JSON object with compositional_deconstruction."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`words` is what judges read of it; `plain` the prompt that it was expanded from."""

    text: str
    words: str
    caption: dict[str, Any] | None = None
    plain: str | None = None
    warnings: tuple[Issue, ...] = ()

    @classmethod
    def of_caption(cls, caption: Caption) -> "Prompt":
        return cls(caption.text, caption.words, caption.value, warnings=caption.faults)

    def expanded(self, caption: Caption) -> "Prompt":
        """As a caption; what there was to remark stays."""
        drawn = Prompt.of_caption(caption)
        return replace(drawn, plain=self.text, warnings=(*self.warnings, *drawn.warnings))

    def facts(self) -> dict[str, str]:
        """What was sent and, if it was expanded, what became of it."""
        return {"prompt": self.text} if self.plain is None else {"prompt": self.plain, **self.revised()}

    def revised(self) -> dict[str, str]:
        """The answer's field, if there is anything to say."""
        return {} if self.plain is None else {"revised_prompt": self.text}

    def drawn(self, revised: str | None, warnings: tuple[Issue, ...]) -> "Prompt":
        """As it was drawn for another request that sent the same."""
        if revised is None:
            return replace(self, warnings=warnings)
        return replace(self, text=revised, plain=self.text, warnings=warnings)

    def warned(self, code: str, message: str) -> "Prompt":
        """The same with a remark for the client."""
        return replace(self, warnings=(*self.warnings, Issue(code=code, path=None, message=message)))


def read_prompt(wanted: PromptFields) -> Prompt:
    """Raises ApiError."""
    if (wanted.prompt is None) == (wanted.json_prompt is None):
        raise invalid("Exactly one of `prompt` and `json_prompt` is needed.", "prompt")
    param = "prompt" if wanted.json_prompt is None else "json_prompt"
    caption, text = _read_caption(wanted, param), wanted.prompt or ""
    faults = caption.faults if caption else _broken(text)
    if faults and wanted.caption == "strict":
        raise CaptionError(faults, param)
    return Prompt.of_caption(caption) if caption else Prompt(text, text)


def _read_caption(wanted: PromptFields, param: str) -> Caption | None:
    """None for plain text. Raises ApiError for one that is too long, or holds a number that JSON cannot."""
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
    """Text that begins as a caption does was meant to be one."""
    return (NOT_A_CAPTION,) if text.lstrip().startswith("{") else ()
