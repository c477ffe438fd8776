"""Where the model comes from: folders, or repositories that are downloaded first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.hub.repository import Repository

# Files of a repository that are not needed if only its transformer is used.
OTHER_PARTS = ("text_encoder/*", "tokenizer/*", "unconditional_transformer/*", "vae/*")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The checkpoint, and the transformer that replaces its own, if any."""

    checkpoint: Path | Repository
    transformer: Path | Repository | None

    @classmethod
    def parse(cls, model: str, transformer: str | None) -> "ModelSources":
        """Parse the values of `--model` and `--transformer`. Raises ConfigError."""
        checkpoint = Repository.parse(model) or Path(model)
        if transformer is None:
            return cls(checkpoint, None)
        return cls(checkpoint, Repository.parse(transformer, "--transformer") or Path(transformer))

    @property
    def need_download(self) -> bool:
        return isinstance(self.checkpoint, Repository) or isinstance(self.transformer, Repository)

    def fetch(self, weights: bool = True) -> tuple[Path, Path | None]:
        """Download repositories, with or without weights, and return the folders. Raises CheckpointError."""
        without = () if weights else WEIGHTS
        if self.transformer is None:
            return _folder(self.checkpoint, without), None
        checkpoint = _folder(self.checkpoint, ("transformer/*", *without))
        return checkpoint, _folder(self.transformer, (*OTHER_PARTS, *without))


def _folder(source: Path | Repository, without: Sequence[str]) -> Path:
    if isinstance(source, Path):
        return source
    from server.hub.download import download  # importing the Hub's client takes a second

    return download(source, without)
