"""The folders of a model's parts: those of a checkpoint, or with another transformer in it. Torch-free."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config.options import EngineOptions
from engine.errors import CheckpointError, OptionError


@dataclass(frozen=True, slots=True)
class PartFolders:
    """One folder per part. If `unconditional` is None, `transformer` runs both passes."""

    text_encoder: Path
    tokenizer: Path
    transformer: Path
    unconditional: Path | None
    vae: Path

    @classmethod
    def of(cls, checkpoint: Path, transformer: Path | None = None, is_guided: bool = True) -> "PartFolders":
        """The parts of a checkpoint folder.

        `transformer` replaces its conditional transformer. Without guidance the unconditional one is not
        used. Raises CheckpointError.
        """
        unconditional = checkpoint / "unconditional_transformer"
        return cls(
            text_encoder=checkpoint / "text_encoder",
            tokenizer=checkpoint / "tokenizer",
            transformer=transformer_folder(transformer) if transformer else checkpoint / "transformer",
            unconditional=unconditional if is_guided and os.path.lexists(unconditional) else None,
            vae=checkpoint / "vae",
        )


def transformer_folder(source: Path) -> Path:
    """The folder that holds a transformer: `source/transformer`, or `source`. Raises CheckpointError."""
    for folder in (source / "transformer", source):
        if os.path.lexists(folder / "config.json"):
            return folder
    raise CheckpointError(f"{source}: neither config.json nor transformer/config.json")


def loaded_folders(folders: PartFolders, options: EngineOptions) -> PartFolders:
    """The folders without the unconditional transformer, if the conditional one runs both passes.

    Raises OptionError.
    """
    if options.uncond_adapter is None:
        return folders
    if options.uncond_device:
        raise OptionError("--uncond-adapter: one transformer runs both passes: unset --uncond-device")
    return replace(folders, unconditional=None)
