"""What one request does without, where its key lets it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from server.access.api_keys import Caller
from server.integrations import Integrations
from server.schemas.errors import ApiError, invalid
from server.schemas.images import ImageRequest

MagicPrompt: TypeAlias = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class OptOuts:
    magic_prompt: MagicPrompt = "auto"
    is_moderated: bool = True
    is_signed: bool = True


def choose(wanted: ImageRequest, caller: Caller, integrations: Integrations) -> OptOuts:
    """Raises ApiError 403 if a key turns off what it may not, 400 if something is not there to be had."""
    given = {
        "magic_prompt": wanted.magic_prompt,
        "moderation": wanted.moderation,
        "provenance": wanted.provenance,
    }
    for name, value in given.items():
        if value == "off" and name in integrations.configured and name not in caller.may_disable:
            raise ApiError(403, "disabling_not_allowed", f"This key may not turn off `{name}`.", param=name)
    if wanted.magic_prompt == "on" and "magic_prompt" not in integrations.configured:
        raise invalid("This server has no magic prompt.", "magic_prompt")
    return OptOuts(
        magic_prompt=wanted.magic_prompt or "auto",
        is_moderated=wanted.moderation != "off",
        is_signed=wanted.provenance != "off",
    )
