"""Magic prompt: a plain prompt made into a caption by a service."""

from server.magic_prompt.backend import ChatExpansion, ExpansionBackend, IdeogramExpansion, WebhookExpansion
from server.magic_prompt.expander import Expander
from server.settings.config_error import needed
from server.settings.secrets import read_token
from server.settings.settings import Settings
from server.upstream.client import Backend, Backends


def from_settings(settings: Settings, backends: Backends) -> Expander | None:
    """None if nobody expands. Raises ConfigError."""
    backend = _backend(settings, backends)
    return Expander(backend, settings.magic_prompt_cache) if backend else None


def _backend(settings: Settings, backends: Backends) -> ExpansionBackend | None:
    if settings.magic_prompt_backend is None:
        return None
    flag = "--magic-prompt-key-file"
    key = read_token(flag, settings.magic_prompt_key_file, settings.magic_prompt_key)
    name, url, seconds = "magic_prompt", settings.magic_prompt_url, settings.magic_prompt_seconds
    if settings.magic_prompt_backend == "ideogram":
        key, url = needed(flag, key), url or IdeogramExpansion.URL
        return IdeogramExpansion(Backend(name, url, seconds, backends, key, header="Api-Key", scheme=""))
    backend = Backend(name, needed("--magic-prompt-url", url), seconds, backends, key)
    if settings.magic_prompt_backend == "webhook":
        return WebhookExpansion(backend)
    return ChatExpansion(backend, needed("--magic-prompt-model", settings.magic_prompt_model))
