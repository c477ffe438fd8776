"""Prompt to token ids, with the checkpoint's tokenizer and chat template. Torch-free."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from engine.config.files import read_bytes, read_json, read_text
from engine.errors import CheckpointError, PromptTooLongError

# Two prompts that must give different token ids.
_PROBES = ("a red fox in the snow", "HELLO 42")
_MARKER = re.compile(r"<\|[^|<>]+\|>")


class Tokenizer:
    """Encodes prompts. It runs before admission, so that a prompt that is too long is never queued."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Read `tokenizer.json` and the chat template. Raises CheckpointError if either is invalid."""
        self.max_tokens = max_tokens
        self._file = folder / "tokenizer.json"
        self._tokenizer = _load_tokenizer(self._file)
        self._template_file, source = _read_template(folder)
        self._template = _compile(self._template_file, source)

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return the ids of one user message and the generation prompt.

        Raises PromptTooLongError above `max_tokens`.
        """
        ids = self._ids(self._render(prompt))
        if len(ids) > self.max_tokens:
            raise PromptTooLongError(len(ids), self.max_tokens)
        return tuple(ids)

    def check(self, vocab_size: int) -> None:
        """Test the tokenizer on two prompts, for a text encoder whose ids are below `vocab_size`.

        Raises CheckpointError that names the file and the key.
        """
        self._check_vocabulary(vocab_size)
        texts = [self._try_template(prompt) for prompt in _PROBES]
        if any(prompt not in text for prompt, text in zip(_PROBES, texts, strict=True)):
            raise CheckpointError(f"{self._template_file}: chat_template: does not include the prompt")
        for marker in _MARKER.findall(texts[0]):
            if len(self._try_encoding(marker)) != 1:
                raise CheckpointError(
                    f"{self._file}: added_tokens: {marker} is missing, but the chat template uses it"
                )
        first, second = map(self._try_encoding, texts)
        if first == second:
            raise CheckpointError(f"{self._file}: model.vocab: has no tokens for English text")
        self._check_frame(len(self._try_encoding(self._try_template(""))))

    def _check_vocabulary(self, vocab_size: int) -> None:
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        token = max(vocabulary, key=vocabulary.__getitem__, default="")
        if vocabulary.get(token, 0) >= vocab_size:
            raise CheckpointError(
                f"{self._file}: {token!r}: id {vocabulary[token]}, but text_encoder/config.json: vocab_size "
                f"is {vocab_size}"
            )

    def _check_frame(self, tokens: int) -> None:
        if tokens >= self.max_tokens:
            raise CheckpointError(
                f"{self._file.parents[1] / 'ideoserve.json'}: limits.max_prompt_tokens: {self.max_tokens}, "
                f"but the chat template alone takes {tokens}"
            )

    def _try_template(self, prompt: str) -> str:
        try:
            return self._render(prompt)
        except Exception as error:  # a template may raise anything
            raise CheckpointError(
                f"{self._template_file}: chat_template: {type(error).__name__}: {error}"
            ) from error

    def _try_encoding(self, text: str) -> Sequence[int]:
        try:
            return self._ids(text)
        except Exception as error:  # the library raises nothing narrower
            raise CheckpointError(f"{self._file}: {type(error).__name__}: {error}") from error

    def _render(self, prompt: str) -> str:
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        return self._template.render(messages=messages, add_generation_prompt=True)

    def _ids(self, text: str) -> Sequence[int]:
        # Unlike `encode`, `encode_batch_fast` releases the GIL, and so does not stop the event loop.
        encodings = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: Sequence[int] = encodings[0].ids
        return ids


def _load_tokenizer(file: Path) -> FastTokenizer:
    try:
        tokenizer = FastTokenizer.from_buffer(read_bytes(file))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{file}: {error}") from error
    # As in transformers: the settings in the file are for training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_template(folder: Path) -> tuple[Path, str]:
    """Return the file that holds the chat template, and the template."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if os.path.lexists(file):
        return file, read_text(file)
    template = read_json(config).get("chat_template") if os.path.lexists(config) else None
    if not isinstance(template, str):
        raise CheckpointError(f"{config}: chat_template: missing, and there is no chat_template.jinja")
    return config, template


def _compile(file: Path, source: str) -> Template:
    # The settings that transformers uses for chat templates.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except Exception as error:  # errors of jinja, and of Python in the code that jinja generates
        raise CheckpointError(f"{file}: chat_template: {error}") from error
