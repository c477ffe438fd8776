"""Token ids of prompts, compared with transformers on the same files."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer

from engine.client.tokenizer import Tokenizer
from engine.errors import CheckpointError, PromptTooLongError
from tests.engine.checkpoints import CHAT_TEMPLATE, Checkpoint, edit_json, train_tokenizer
from tests.engine.models.test_parity import PROMPTS
from tests.engine.reference import token_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_those_of_transformers(checkpoint: Checkpoint, prompt: str) -> None:
    tokenizer = Tokenizer(checkpoint.path / "tokenizer", max_tokens=2048)
    assert list(tokenizer.encode(prompt)) == token_ids(checkpoint.referee, prompt)


def test_the_limit_of_tokens_is_inclusive(checkpoint: Checkpoint) -> None:
    tokenizer = Tokenizer(checkpoint.path / "tokenizer", max_tokens=2048)
    frame = len(tokenizer.encode(""))
    assert len(tokenizer.encode("?" * (2048 - frame))) == 2048
    with pytest.raises(PromptTooLongError, match="2049 tokens; the model's limit is 2048") as caught:
        tokenizer.encode("?" * (2049 - frame))
    assert (caught.value.count, caught.value.limit) == (2049, 2048)


def test_the_template_may_be_in_the_config(tmp_path: Path, checkpoint: Checkpoint) -> None:
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


CONFIGS = [None, "{}", "[]", "{", "[" * 100_000, '{"chat_template": 3}', '{"chat_template": "{% if"}']


@pytest.mark.parametrize("config", CONFIGS)
def test_no_usable_template(tmp_path: Path, config: str | None) -> None:
    train_tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer(tmp_path, 2048)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of 320 tokens."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    return folder


def test_a_valid_tokenizer_passes(folder: Path) -> None:
    Tokenizer(folder, max_tokens=16).check(vocab_size=320)


TEMPLATES = {
    "that is not UTF-8": (b"\xff", "not UTF-8"),
    "of unknown syntax": (b"{% nonsense %}", "nonsense"),
    "with an unknown filter": (b"{{ messages | nonsense }}", "nonsense"),
    "that Python cannot compile": (b"{% for a in b %}" * 30 + b"{% endfor %}" * 30, "nested"),
    "that raises": (b"{{ raise_exception('no') }}", "UndefinedError"),
    "that divides by zero": (b"{{ 1 // (messages | length - 1) }}", "ZeroDivisionError"),
    "without the prompt": (b"<|im_start|>user a red fox<|im_end|>", "does not include the prompt"),
    "that is empty": (b"", "does not include the prompt"),
    "with a lone surrogate": (b"{{ messages[0].content[0].text }}{{ '\\ud800' }}", "tokenizer.json"),
}


@pytest.mark.parametrize(("template", "problem"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_template(folder: Path, template: bytes, problem: str) -> None:
    file = folder / "chat_template.jinja"
    file.write_bytes(template)
    _refused(folder, rf"chat_template\.jinja: .*{problem}" if "json" not in problem else problem)


def test_a_template_that_is_a_folder(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").mkdir()
    _refused(folder, r"chat_template\.jinja: not a regular file")


def test_a_token_beyond_the_embedding(folder: Path) -> None:
    size = train_tokenizer().backend_tokenizer.get_vocab_size()
    Tokenizer(folder, 2048).check(size)
    problem = rf"tokenizer\.json: '.+': id {size - 1}, but .*: vocab_size is {size - 1}"
    _refused(folder, problem, vocab=size - 1)


def test_a_template_that_fills_the_limit(folder: Path) -> None:
    frame = len(Tokenizer(folder, 2048).encode(""))
    _refused(folder, r"ideoserve\.json: limits\.max_prompt_tokens: .* takes", max_tokens=frame)
    Tokenizer(folder, frame + 1).check(320)


def _no_special_tokens(declared: dict[str, Any]) -> None:
    declared["added_tokens"] = []


def _no_vocabulary(declared: dict[str, Any]) -> None:
    declared["model"].update(vocab={}, merges=[])
    declared["added_tokens"] = []


def _no_letters(declared: dict[str, Any]) -> None:
    declared["model"].update(vocab={"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}, merges=[])


VOCABULARIES = {
    "without special tokens": (_no_special_tokens, r"added_tokens: <\|im_start\|> is missing"),
    "that is empty": (_no_vocabulary, r"added_tokens: <\|im_start\|> is missing"),
    "of special tokens only": (_no_letters, "model.vocab"),
    "without a model": (lambda declared: declared.pop("model"), ""),
}


@pytest.mark.parametrize(("edit", "problem"), VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_vocabulary(folder: Path, edit: Callable[[dict[str, Any]], object], problem: str) -> None:
    edit_json(folder / "tokenizer.json", edit)
    _refused(folder, rf"tokenizer\.json: .*{problem}")


def test_truncation_and_padding_of_the_file_are_ignored(folder: Path) -> None:
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    expected = Tokenizer(folder, 2048).encode("a fox")
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder, 2048).encode("a fox") == expected


def test_other_threads_run_while_a_long_prompt_is_encoded(folder: Path) -> None:
    tokenizer = Tokenizer(folder, max_tokens=1_000_000)
    tokenizer.encode("warm up")
    ticks: list[float] = []
    is_done = threading.Event()

    def tick() -> None:
        while not is_done.wait(0.001):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.monotonic()
    tokenizer.encode("\U0001f468\u200d" * 32_000)
    ended = time.monotonic()
    is_done.set()
    thread.join()
    assert sum(started < at < ended for at in ticks) >= 5


def _refused(folder: Path, problem: str, max_tokens: int = 2048, vocab: int = 320) -> None:
    with pytest.raises(CheckpointError, match=problem):
        Tokenizer(folder, max_tokens).check(vocab)
