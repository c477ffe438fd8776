"""Magic prompt: an upstream expands a plain prompt into a caption."""

from server.magic_prompt.expander import Expander
from server.magic_prompt.upstreams import (
    ChatExpansion,
    ExpansionUpstream,
    IdeogramExpansion,
    WebhookExpansion,
)
from server.settings.config_error import needed
from server.settings.secrets import read_token
from server.settings.settings import Settings
from server.upstream.client import Upstream, UpstreamClients


def from_settings(settings: Settings, upstreams: UpstreamClients) -> Expander | None:
    """None unless an upstream is configured. Raises ConfigError."""
    upstream = _upstream(settings, upstreams)
    return Expander(upstream, settings.magic_prompt_cache) if upstream else None


def _upstream(settings: Settings, upstreams: UpstreamClients) -> ExpansionUpstream | None:
    if settings.magic_prompt_backend is None:
        return None
    flag = "--magic-prompt-key-file"
    key = read_token(flag, settings.magic_prompt_key_file, settings.magic_prompt_key)
    name, url, seconds = "magic_prompt", settings.magic_prompt_url, settings.magic_prompt_seconds
    if settings.magic_prompt_backend == "ideogram":
        key, url = needed(flag, key), url or IdeogramExpansion.URL
        return IdeogramExpansion(Upstream(name, url, seconds, upstreams, key, header="Api-Key", scheme=""))
    upstream = Upstream(name, needed("--magic-prompt-url", url), seconds, upstreams, key)
    if settings.magic_prompt_backend == "webhook":
        return WebhookExpansion(upstream)
    return ChatExpansion(upstream, needed("--magic-prompt-model", settings.magic_prompt_model))
