"""Which values of `--model` name a repository of the Hugging Face Hub."""

from pathlib import Path

import pytest

from server.hub.repository import Repository
from server.hub.sources import ModelSources
from server.settings.config_error import ConfigError


@pytest.mark.parametrize("scheme", ["", "hf://"])
@pytest.mark.parametrize(
    ("model", "name", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("Owner-1/na_me.v2", "Owner-1/na_me.v2", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("owner/name@0123abc", "owner/name", "0123abc"),
        ("owner/name@refs/pr/1", "owner/name", "refs/pr/1"),
        ("owner/name@feature/a@b", "owner/name", "feature/a@b"),
    ],
)
def test_a_repository(scheme: str, model: str, name: str, revision: str | None) -> None:
    assert Repository.parse(scheme + model) == Repository(name, revision)


@pytest.mark.parametrize(
    "model",
    [
        "/a/folder",
        "folder",
        "./owner/name",
        "../owner",
        "~/name",
        "a/b/c",
        "a/b/c@v1",
        "owner/",
        "x" * 300,
        "a b/c",
    ],
)
def test_a_folder(model: str) -> None:
    assert Repository.parse(model) is None


@pytest.mark.parametrize("model", ["owner/name", "owner/name@v1"])
@pytest.mark.parametrize("existing", ["owner", "owner/name", "owner/name@v1"])
def test_a_folder_that_exists_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, existing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / existing).mkdir(parents=True)
    assert Repository.parse(model) is None
    assert Repository.parse(f"hf://{model}") is not None


@pytest.mark.parametrize(
    "model", ["", "owner", "/name", "owner/", "a/b/c", "owner/name@", "owner/na me", "@v1"]
)
def test_an_address_of_no_repository(model: str) -> None:
    with pytest.raises(ConfigError, match=r"--model hf://.*: must be hf://owner/name\[@revision\]"):
        Repository.parse(f"hf://{model}")


def test_errors_name_the_flag() -> None:
    with pytest.raises(ConfigError, match="--transformer hf://name: must be"):
        ModelSources.parse("folder", "hf://name")


@pytest.mark.parametrize(
    ("model", "transformer", "needs"),
    [("./a", None, False), ("./a", "./b", False), ("owner/a", "./b", True), ("./a", "owner/b", True)],
)
def test_what_needs_a_download(model: str, transformer: str | None, needs: bool) -> None:
    assert ModelSources.parse(model, transformer).need_download == needs
