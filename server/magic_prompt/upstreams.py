"""The services that expand a prompt, each with its own question and answer."""

from typing import Any, Protocol

from pydantic import BaseModel, Field
from pydantic_core import from_json

from server.captions.caption import Caption
from server.captions.schema import caption_schema, strict_schema
from server.magic_prompt import ratio
from server.upstream.client import Upstream, UpstreamError

INSTRUCTION = (
    "You write captions for a text-to-image model. Expand the user's idea into one caption as JSON by the "
    "schema: keep every wish and every text to be drawn literally, add what a good picture of it needs, and "
    "place the elements with bbox as [y_min, x_min, y_max, x_max] in thousandths of the sides, for an image "
    "of aspect ratio {ratio} (width x height). Colours are #RRGGBB in upper case."
)


class ExpansionUpstream(Protocol):
    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        """Raises UpstreamError."""


class _JsonPrompt(BaseModel):
    json_prompt: dict[str, Any]

    def caption(self) -> Caption:
        return _caption(self.json_prompt)


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=100)

    def caption(self) -> Caption:
        try:
            value = from_json(self.choices[0].message.content or "")
        except ValueError:
            raise _no_caption() from None
        return _caption(value)


class IdeogramExpansion:
    """Ideogram's hosted magic prompt."""

    URL = "https://api.ideogram.ai/v1/ideogram-v4/magic-prompt"

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        question = {"text_prompt": prompt, "aspect_ratio": ratio.hosted(width, height)}
        return await self._upstream.post(_JsonPrompt, _JsonPrompt.caption, json=question)


class ChatExpansion:
    """Any chat model behind OpenAI's interface that answers by a JSON schema."""

    def __init__(self, upstream: Upstream, model: str) -> None:
        self._upstream = upstream
        self._model = model

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        question = self._question(prompt, width, height)
        return await self._upstream.post(_Completion, _Completion.caption, json=question)

    def _question(self, prompt: str, width: int, height: int) -> dict[str, Any]:
        instruction = INSTRUCTION.format(ratio=ratio.exact(width, height))
        schema = {"name": "caption", "strict": True, "schema": strict_schema(caption_schema())}
        return {
            "model": self._model,
            "messages": [
                {"role": "system", "content": instruction},
                {"role": "user", "content": prompt},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }


class WebhookExpansion:
    """An operator's own service."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def expand(self, prompt: str, width: int, height: int) -> Caption:
        shape = {"width": width, "height": height, "aspect_ratio": ratio.exact(width, height)}
        question = {"prompt": prompt, **shape}
        return await self._upstream.post(_JsonPrompt, _JsonPrompt.caption, json=question)


def _caption(value: object) -> Caption:
    """What a service calls a caption is not believed to be one."""
    try:
        caption = Caption.of(value) if isinstance(value, dict) else None
    except ValueError:
        caption = None
    if caption is None or not caption.has_composition:
        raise _no_caption()
    return caption


def _no_caption() -> UpstreamError:
    return UpstreamError("invalid", "its answer is no caption")
