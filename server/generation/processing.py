"""Processing outside the device: moderation, magic prompt and content credentials."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import EngineError
from engine.request import AdapterUse
from server.access.api_keys import Caller
from server.captions.caption import Caption
from server.captions.prompt import Prompt
from server.engine_port import Engine
from server.generation.image_encoder import MEDIA_TYPES, PREVIEW_FORMAT, ImageEncoder
from server.generation.parameters import Parameters
from server.integrations import Integrations
from server.magic_prompt.expander import TokenIds
from server.offload import offload
from server.schemas.errors import ApiError, from_engine, invalid
from server.schemas.images import ImageRequest
from server.upstream.client import UpstreamError


@dataclass(frozen=True, slots=True)
class OptOuts:
    """The processing that a request turns off."""

    magic_prompt: Literal["auto", "on", "off"] = "auto"
    moderation: bool = False
    provenance: bool = False

    @classmethod
    def of(cls, wanted: ImageRequest, caller: Caller, configured: frozenset[str]) -> "OptOuts":
        """Raises ApiError 403 if the key does not allow an opt-out, 400 if magic prompt is required but not
        configured."""
        fields = {
            "magic_prompt": wanted.magic_prompt,
            "moderation": wanted.moderation,
            "provenance": wanted.provenance,
        }
        for name, value in fields.items():
            if value == "off" and name in configured and name not in caller.may_disable:
                message = f"This key may not turn off `{name}`."
                raise ApiError(403, "disabling_not_allowed", message, param=name)
        if wanted.magic_prompt == "on" and "magic_prompt" not in configured:
            raise invalid("This server has no magic prompt.", "magic_prompt")
        return cls(wanted.magic_prompt or "auto", wanted.moderation == "off", wanted.provenance == "off")


class Processing:
    """The processing of one request. Moderates the prompt and the image of an edit, and expands the
    prompt; moderates and signs the images."""

    def __init__(
        self,
        engine: Engine,
        encoder: ImageEncoder,
        integrations: Integrations,
        opt_outs: OptOuts,
        adapters: Sequence[AdapterUse] = (),
    ) -> None:
        """The credentials name the `adapters`."""
        self._engine = engine
        self._encoder = encoder
        self._expander = None if opt_outs.magic_prompt == "off" else integrations.expander
        self._must_expand = opt_outs.magic_prompt == "on"
        self._moderation = None if opt_outs.moderation else integrations.moderation
        self._credentials = None if opt_outs.provenance else integrations.credentials
        self._adapters = adapters
        self._sends_previews = opt_outs.moderation or integrations.sends_previews

    def check_previews(self, parameters: Parameters) -> Parameters:
        """Without previews if images are moderated: a preview would be sent before the image is."""
        if not parameters.num_previews or self._sends_previews:
            return parameters
        message = "Images are moderated here, so there are no previews."
        return replace(parameters, prompt=parameters.prompt.warned("previews_off", message), num_previews=0)

    async def prepare(self, parameters: Parameters, token_ids: TokenIds) -> tuple[Parameters, TokenIds]:
        """Returns both for the prompt that is sent to the engine. Raises ApiError."""
        await self._moderate(parameters.prompt)
        await self._moderate_source(parameters)
        parameters, token_ids = await self._expand(parameters, token_ids)
        if parameters.prompt.plain is not None:
            await self._moderate(parameters.prompt)
        return parameters, token_ids

    async def finish(self, data: bytes, media_type: str) -> bytes:
        """The file as it is sent to the client. Raises ApiError."""
        if self._moderation:
            await self._moderation.check_image(data, media_type)
        return await self.sign(data, media_type)

    async def sign(self, data: bytes, media_type: str) -> bytes:
        if self._credentials is None:
            return data
        return await self._encoder.run(self._credentials.sign, data, media_type, self._adapters)

    async def _moderate(self, prompt: Prompt) -> None:
        if self._moderation:
            await self._moderation.check_text(prompt.words)

    async def _moderate_source(self, parameters: Parameters) -> None:
        """As it was decoded and fitted: no other part of the upload reaches the model."""
        if self._moderation and self._moderation.moderates_images and parameters.source:
            data = await self._encoder.encode_source(parameters)
            await self._moderation.check_upload(data, MEDIA_TYPES[PREVIEW_FORMAT])

    async def _expand(self, parameters: Parameters, token_ids: TokenIds) -> tuple[Parameters, TokenIds]:
        prompt = parameters.prompt
        if self._expander is None or prompt.caption is not None:
            return parameters, token_ids
        try:
            key = (prompt.text, parameters.width, parameters.height)
            expansion = await self._expander.expand(key, self._tokenize)
            expanded = prompt.expanded(expansion.caption)
            return replace(parameters, prompt=expanded), expansion.token_ids
        except UpstreamError as error:
            return replace(parameters, prompt=self._not_expanded(prompt, error)), token_ids

    async def _tokenize(self, caption: Caption) -> TokenIds:
        try:
            return await tokenize(self._engine, caption.text)
        except ApiError:
            raise UpstreamError("invalid", "its response is too long") from None

    def _not_expanded(self, prompt: Prompt, error: UpstreamError) -> Prompt:
        message = f"The prompt was not expanded: {error}."
        if self._must_expand:
            raise ApiError(503, "magic_prompt_unavailable", message, param="magic_prompt", retry_after=5)
        return prompt.warned("magic_prompt_failed", message)


async def tokenize(engine: Engine, prompt: str) -> TokenIds:
    """Raises ApiError 400 if the prompt has too many tokens."""
    try:
        return await offload(len(prompt), lambda: engine.tokenize(prompt))
    except EngineError as error:
        raise from_engine(error) from error
