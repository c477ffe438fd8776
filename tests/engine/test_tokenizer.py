"""Prompt to ids, beside transformers' chat template and tokenizer on the same files."""

import json
from pathlib import Path

import pytest

from engine.errors import CheckpointError, PromptTooLongError
from engine.tokenizer import Tokenizer
from tests.engine.checkpoints import CHAT_TEMPLATE, Checkpoint, train_tokenizer
from tests.engine.reference import token_ids
from tests.engine.test_parity import PROMPTS


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_transformers(checkpoint: Checkpoint, prompt: str) -> None:
    tokenizer = Tokenizer(checkpoint.path / "tokenizer", max_tokens=2048)
    assert list(tokenizer.encode(prompt)) == token_ids(checkpoint.referee, prompt)


def test_the_last_token_allowed_and_the_first_that_is_not(checkpoint: Checkpoint) -> None:
    tokenizer = Tokenizer(checkpoint.path / "tokenizer", max_tokens=2048)
    frame = len(tokenizer.encode(""))
    assert len(tokenizer.encode("?" * (2048 - frame))) == 2048
    with pytest.raises(PromptTooLongError, match="2049 tokens; the model reads at most 2048") as caught:
        tokenizer.encode("?" * (2049 - frame))
    assert (caught.value.count, caught.value.limit) == (2049, 2048)


def test_the_template_may_lie_in_the_config(tmp_path: Path, checkpoint: Checkpoint) -> None:
    fast = train_tokenizer()
    fast.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    assert list(Tokenizer(tmp_path, 2048).encode("a fox")) == token_ids(checkpoint.referee, "a fox")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path, 2048)


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path, 2048)


@pytest.mark.parametrize("config", [None, "{}", "{", '{"chat_template": 3}', '{"chat_template": "{% if"}'])
def test_no_usable_template(tmp_path: Path, config: str | None) -> None:
    train_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer(tmp_path, 2048)
