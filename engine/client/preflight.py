"""Checkpoint checks that need no torch. They run in the server's process before a worker is spawned."""

from engine.client.tokenizer import Tokenizer
from engine.config.model_config import ModelConfig
from engine.config.part_configs import PartConfigs
from engine.errors import CheckpointError


def open_tokenizer(config: ModelConfig) -> Tokenizer:
    """Check that limits, configs, tokenizer and chat template match, and return the tokenizer.

    Raises CheckpointError that names the file and the key.
    """
    parts = PartConfigs.read(config.folders)
    _check_limits(config, parts)
    tokenizer = Tokenizer(config.folders.tokenizer, config.limits.max_prompt_tokens)
    tokenizer.check(parts.text_encoder.text_config.vocab_size)
    return tokenizer


def _check_limits(config: ModelConfig, parts: PartConfigs) -> None:
    file, limits = config.path / "ideoserve.json", config.limits
    pixels = parts.vae.pixels_per_token
    if limits.multiple_of % pixels:
        raise CheckpointError(
            f"{file}: limits.multiple_of: {limits.multiple_of} is not a multiple of {pixels}, the pixels per "
            "token of vae/config.json"
        )
    positions = parts.text_encoder.text_config.max_position_embeddings
    if limits.max_prompt_tokens > positions:
        raise CheckpointError(
            f"{file}: limits.max_prompt_tokens: {limits.max_prompt_tokens}, but text_encoder/config.json: "
            f"max_position_embeddings is {positions}"
        )
