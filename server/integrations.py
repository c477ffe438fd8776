"""Optional integrations: magic prompt, moderation and content credentials."""

from server import magic_prompt, moderation, provenance
from server.settings.settings import Settings
from server.upstream.client import UpstreamClients


class Integrations:
    """None for each that is not configured. Raises ConfigError."""

    def __init__(self, settings: Settings, upstreams: UpstreamClients, model_id: str) -> None:
        moderators = moderation.from_settings(settings, upstreams)
        self.expander = magic_prompt.from_settings(settings, upstreams)
        self.moderation = moderators if moderators.moderates_text or moderators.moderates_images else None
        self.credentials = provenance.from_settings(settings, model_id)
        self.sends_previews = settings.moderated_previews or not moderators.moderates_images
        parts = {
            "magic_prompt": self.expander,
            "moderation": self.moderation,
            "provenance": self.credentials,
        }
        # By the names of the request's fields.
        self.configured = frozenset(name for name, part in parts.items() if part)
