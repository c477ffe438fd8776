"""The compatibility table of docs/http.md names the versions that the tests run."""

import json
import re

import pytest

from tests.server.clients.programs import HERE
from tests.server.process import REPOSITORY

TABLE = (REPOSITORY / "docs/http.md").read_text("utf-8").partition("## Compatibility")[2].partition("\n##")[0]
PYTHON = (HERE / "python/requirements.txt").read_text() + (REPOSITORY / "requirements.lock").read_text()
NODE: dict[str, str] = json.loads((HERE / "node/package.json").read_text())["dependencies"]


@pytest.mark.parametrize("name", ["openai", "litellm", "haystack-ai", "langchain-community"])
def test_python_clients(name: str) -> None:
    (version,) = re.findall(rf"^{name}==(.*)$", PYTHON, re.MULTILINE)
    assert f"(`{name}`) | {version} |" in TABLE


@pytest.mark.parametrize("name", NODE)
def test_npm_clients(name: str) -> None:
    described = f"`{name}` {NODE[name]}" if name.startswith("@") else f"(`{name}`) | {NODE[name]} |"
    assert described in TABLE
