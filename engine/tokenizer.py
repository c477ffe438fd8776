"""Prompt to token ids, as the checkpoint's own tokenizer and chat template have it. Torch-free."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from engine.errors import CheckpointError, PromptTooLongError


class Tokenizer:
    """Counts and encodes prompts; used before admission, so an over-long prompt never queues."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Read `tokenizer.json` and the chat template. Raises CheckpointError if either is of no use."""
        self.max_tokens = max_tokens
        self._tokenizer = _load_tokenizer(folder / "tokenizer.json")
        self._template = _load_template(folder)

    def encode(self, prompt: str) -> tuple[int, ...]:
        """The ids of one user message with the generation prompt behind it.

        Raises PromptTooLongError (with both numbers) past `max_tokens`.
        """
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = self._template.render(messages=messages, add_generation_prompt=True)
        ids: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > self.max_tokens:
            raise PromptTooLongError(len(ids), self.max_tokens)
        return tuple(ids)


def _load_tokenizer(file: Path) -> FastTokenizer:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        return FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{file}: {error}") from error


def _load_template(folder: Path) -> Template:
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return _compile(file, file.read_text("utf-8"))
    return _compile(config, _embedded_template(config))


def _compile(file: Path, source: str) -> Template:
    # The settings transformers renders chat templates with.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise CheckpointError(f"{file}: chat_template: {error}") from error


def _embedded_template(config: Path) -> str:
    try:
        declared: dict[str, Any] = json.loads(config.read_text("utf-8")) if config.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{config}: {error}") from error
    template = declared.get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{config}: chat_template: missing, and there is no chat_template.jinja")
    return template
