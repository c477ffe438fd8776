"""Moderation of prompts and images."""

from server.moderation.deny_list import DenyList
from server.moderation.hive import Hive
from server.moderation.moderation import Moderation
from server.moderation.webhook import Webhook
from server.settings.config_error import ConfigError, needed
from server.settings.secrets import read_token
from server.settings.settings import Settings
from server.upstream.client import Upstream, UpstreamClients


def from_settings(settings: Settings, upstreams: UpstreamClients) -> Moderation:
    """Raises ConfigError."""
    moderators = _Moderators(settings, upstreams)
    text = [
        moderators.of_text(name)
        for name in _moderator_names("--prompt-moderation", settings.prompt_moderation)
    ]
    images = [
        moderators.of_images(name)
        for name in _moderator_names("--image-moderation", settings.image_moderation)
    ]
    return Moderation(text, images, fails_open=settings.moderation_failure == "open")


class _Moderators:
    def __init__(self, settings: Settings, upstreams: UpstreamClients) -> None:
        self._settings = settings
        self._upstreams = upstreams

    def of_text(self, name: str) -> DenyList | Hive | Webhook:
        if name == "deny-list":
            return DenyList(needed("--deny-list-file", self._settings.deny_list_file))
        return self._service("--prompt-moderation", name)

    def of_images(self, name: str) -> Hive | Webhook:
        return self._service("--image-moderation", name)

    def _service(self, flag: str, name: str) -> Hive | Webhook:
        if name == "hive":
            return self._hive()
        if name == "webhook":
            return self._webhook()
        raise ConfigError(f"{flag}: unknown moderator")

    def _hive(self) -> Hive:
        settings, flag = self._settings, "--hive-key-file"
        key = needed(flag, read_token(flag, settings.hive_key_file, settings.hive_key))
        url = settings.hive_url.rstrip("/")
        upstream = Upstream("hive", url, settings.moderation_seconds, self._upstreams, key)
        ignored = frozenset(_names(settings.hive_ignore))
        return Hive(upstream, settings.hive_text_severity, settings.hive_image_score, ignored)

    def _webhook(self) -> Webhook:
        settings, flag = self._settings, "--moderation-webhook-key-file"
        key = read_token(flag, settings.moderation_webhook_key_file, settings.moderation_webhook_key)
        url = needed("--moderation-webhook-url", settings.moderation_webhook_url)
        return Webhook(Upstream("webhook", url, settings.moderation_seconds, self._upstreams, key))


def _moderator_names(flag: str, listed: str | None) -> list[str]:
    """A list of commas alone is an error, so that it cannot disable moderation."""
    names = _names(listed or "")
    if listed is not None and not names:
        raise ConfigError(f"{flag}: names no moderator")
    return names


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]
