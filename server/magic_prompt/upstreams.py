"""The upstreams that expand a prompt, each with its own request and response format."""

from typing import Any, Protocol

from pydantic import BaseModel, Field

from server.captions.caption import Caption
from server.captions.schema import caption_schema, strict_schema, unconstrained
from server.captions.unwrap import extract, unwrap
from server.magic_prompt import ratio
from server.upstream.client import Upstream, UpstreamError

INSTRUCTION = (
    "You write captions for a text-to-image model. Expand the user's idea into one caption as JSON by the "
    "schema: keep every wish and every text to be drawn literally, add what a good picture of it needs, and "
    "place the elements with bbox as [y_min, x_min, y_max, x_max] in thousandths of the sides, for an image "
    "of aspect ratio {ratio} (width x height). Colours are #RRGGBB in upper case."
)
# How chat servers answer a request whose schema they do not support.
SCHEMA_REFUSED = (400, 422)


class ExpansionUpstream(Protocol):
    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        """Raises UpstreamError."""


class _JsonPrompt(BaseModel):
    json_prompt: dict[str, Any] | list[Any] | str

    def caption(self) -> Caption:
        return _caption(unwrap(self.json_prompt))


class _Part(BaseModel):
    text: str | None = None


class _Message(BaseModel):
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """Content parts are joined; parts that are not text are dropped."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=100)

    def caption(self) -> Caption:
        return _caption(extract(self.choices[0].message.text))


class IdeogramExpansion:
    """Ideogram's hosted magic prompt."""

    URL = "https://api.ideogram.ai/v1/ideogram-v4/magic-prompt"

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        question = {"text_prompt": prompt, "aspect_ratio": ratio.hosted(width, height)}
        return await self._upstream.post(_JsonPrompt, _JsonPrompt.caption, json=question)


class ChatExpansion:
    """A chat completions endpoint that supports JSON schemas.

    Many refuse a schema with `pattern` or bounds. After the first such refusal, which counts as a failed
    attempt, the schema is sent without them: the caption is checked here anyway.
    """

    def __init__(self, upstream: Upstream, model: str) -> None:
        self._upstream = upstream
        self._model = model
        self._schema = strict_schema(caption_schema())

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        question = self._question(prompt, width, height)
        try:
            return await self._upstream.post(_Completion, _Completion.caption, json=question)
        except UpstreamError as error:
            if error.status in SCHEMA_REFUSED:
                self._schema = unconstrained(self._schema)
            raise

    def _question(self, prompt: str, width: int, height: int) -> dict[str, Any]:
        instruction = INSTRUCTION.format(ratio=ratio.exact(width, height))
        schema = {"name": "caption", "strict": True, "schema": self._schema}
        return {
            "model": self._model,
            "messages": [
                {"role": "system", "content": instruction},
                {"role": "user", "content": prompt},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }


class WebhookExpansion:
    """A service that the operator runs."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        shape = {"width": width, "height": height, "aspect_ratio": ratio.exact(width, height)}
        question = {"prompt": prompt, **shape}
        return await self._upstream.post(_JsonPrompt, _JsonPrompt.caption, json=question)


def _caption(value: dict[str, Any] | None) -> Caption:
    """The answer's caption, checked. Raises UpstreamError."""
    try:
        caption = Caption.of(value) if value is not None else None
    except ValueError:
        caption = None
    if caption is None or not caption.has_composition:
        raise UpstreamError("invalid", "its response is not a caption")
    return caption
