"""An adapter as it is served."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.adapters.adapter_file import AdapterInfo
from engine.request import SamplingParams
from server.adapters.declaration import AdapterSettings

Status = Literal["ready", "loading", "broken"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A safetensors file that was read. `digest` is the SHA-256 of its bytes, in hex."""

    path: Path
    digest: str
    info: AdapterInfo


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter by its name. Without `weights` it cannot be used: `error` says why, or its file is being
    downloaded or written. A download that failed with `error` `is_retried`."""

    name: str
    settings: AdapterSettings = field(default_factory=AdapterSettings)
    weights: Weights | None = None
    error: str | None = None
    is_retried: bool = False

    @property
    def status(self) -> Status:
        if self.error is not None and not self.is_retried:
            return "broken"
        return "ready" if self.weights else "loading"

    @property
    def preset(self) -> SamplingParams | None:
        """Replaces the default preset of the model."""
        return self.settings.preset.to_params() if self.settings.preset else None

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """Those of the settings, else those in the metadata of the file."""
        if self.settings.trigger_words is not None:
            return tuple(self.settings.trigger_words)
        return self.weights.info.trigger_words if self.weights else ()

    def is_offered_to(self, key: str) -> bool:
        """Whether the API key of this name may use it."""
        return self.settings.keys is None or key in self.settings.keys
