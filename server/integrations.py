"""What stands around the model, as the settings have it: expansion, moderation, content credentials."""

from server import magic_prompt as expansion
from server import moderation, provenance
from server.settings.settings import Settings
from server.upstream.client import Backends


class Integrations:
    """All of it is optional. Raises ConfigError."""

    def __init__(self, settings: Settings, backends: Backends, model_id: str) -> None:
        self.expander = expansion.from_settings(settings, backends)
        self.moderation = moderation.from_settings(settings, backends)
        self.credentials = provenance.from_settings(settings, model_id)
        self.sends_previews = settings.moderated_previews or not self.moderation.judges_images

    @property
    def configured(self) -> frozenset[str]:
        """By the names of the request's fields."""
        judges = self.moderation.judges_text or self.moderation.judges_images
        parts = {"magic_prompt": self.expander, "moderation": judges, "provenance": self.credentials}
        return frozenset(name for name, part in parts.items() if part)
