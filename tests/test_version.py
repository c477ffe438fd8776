"""Every version in the repository is derived from `server.VERSION` or equal to it."""

import re
import tomllib
from pathlib import Path

import pytest

from server import VERSION

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CHART = (ROOT / "deploy/helm/Chart.yaml").read_text("utf-8")
PAGES = (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md"))
IMAGE_TAG = re.compile(r"ideoserve:(\d[\w.+-]*)")


def test_the_package_version_is_read_from_the_server() -> None:
    assert "version" not in PYPROJECT["project"]
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "server.VERSION"}


@pytest.mark.parametrize("field", ["version", "appVersion"])
def test_the_chart_version_matches(field: str) -> None:
    assert re.findall(rf"^{field}: (.+)$", CHART, re.MULTILINE) == [VERSION]


def test_image_tags_in_the_docs_match() -> None:
    tags = [tag for page in PAGES for tag in IMAGE_TAG.findall(page.read_text("utf-8"))]
    assert tags
    assert set(tags) == {VERSION}


def test_the_latest_changelog_entry_matches() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == VERSION
