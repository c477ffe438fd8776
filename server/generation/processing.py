"""What the prompt and the images of one request go through beside the device."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from server.access.opt_outs import OptOuts
from server.captions.caption import Caption
from server.captions.prompt import Prompt
from server.generation.image_encoder import ImageEncoder
from server.generation.parameters import Parameters
from server.integrations import Integrations
from server.magic_prompt.expander import TokenIds
from server.schemas.errors import ApiError
from server.upstream.client import BackendError

Tokenize = Callable[[str], Awaitable[TokenIds]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is going to be drawn."""

    parameters: Parameters
    token_ids: TokenIds


class Processing:
    """Before the queue: judged, expanded, judged again. After the decoder: judged, signed."""

    def __init__(
        self, integrations: Integrations, opt_outs: OptOuts, encoder: ImageEncoder, tokenize: Tokenize
    ) -> None:
        self._expander = integrations.expander if opt_outs.magic_prompt != "off" else None
        self._must_expand = opt_outs.magic_prompt == "on"
        self._moderation = integrations.moderation if opt_outs.is_moderated else None
        self._credentials = integrations.credentials if opt_outs.is_signed else None
        self._encoder = encoder
        self._tokenize = tokenize

    async def prepare(self, parameters: Parameters, token_ids: TokenIds) -> Prepared:
        """Raises ApiError."""
        await self._judge(parameters.prompt)
        prepared = await self._expand(parameters, token_ids)
        if prepared.parameters.prompt.plain is not None:
            await self._judge(prepared.parameters.prompt)
        return prepared

    async def finish(self, data: bytes, media_type: str) -> bytes:
        """A file as it may leave. Raises ApiError."""
        if self._moderation:
            await self._moderation.check_image(data, media_type)
        return await self.sign(data, media_type)

    async def sign(self, data: bytes, media_type: str) -> bytes:
        if self._credentials is None:
            return data
        return await self._encoder.run(self._credentials.sign, data, media_type)

    async def _judge(self, prompt: Prompt) -> None:
        if self._moderation:
            await self._moderation.check_text(prompt.words)

    async def _expand(self, parameters: Parameters, token_ids: TokenIds) -> Prepared:
        prompt = parameters.prompt
        if self._expander is None or prompt.caption is not None:
            return Prepared(parameters, token_ids)
        try:
            key = (prompt.text, parameters.width, parameters.height)
            expansion = await self._expander.expand(key, self._read)
            expanded = prompt.expanded(expansion.caption)
            return Prepared(replace(parameters, prompt=expanded), expansion.token_ids)
        except BackendError as error:
            return Prepared(replace(parameters, prompt=self._plain(prompt, error)), token_ids)

    async def _read(self, caption: Caption) -> TokenIds:
        try:
            return await self._tokenize(caption.text)
        except ApiError:
            raise BackendError("invalid", "its answer is too long") from None

    def _plain(self, prompt: Prompt, error: BackendError) -> Prompt:
        message = f"The prompt was not expanded: {error}."
        if self._must_expand:
            raise ApiError(503, "magic_prompt_unavailable", message, param="magic_prompt", retry_after=5)
        return prompt.warned("magic_prompt_failed", message)
