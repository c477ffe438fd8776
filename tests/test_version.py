"""`server.VERSION` is the only version: everything else is derived from it or equal to it."""

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


def test_the_package_takes_its_version_from_the_server() -> None:
    assert "version" not in PYPROJECT["project"]
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "server.VERSION"}


@pytest.mark.parametrize("field", ["version", "appVersion"])
def test_the_chart_has_the_version(field: str) -> None:
    assert re.findall(rf"^{field}: (.+)$", CHART, re.MULTILINE) == [VERSION]


def test_the_pages_name_images_of_the_version() -> None:
    tags = [tag for page in PAGES for tag in IMAGE_TAG.findall(page.read_text("utf-8"))]
    assert tags
    assert set(tags) == {VERSION}


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == VERSION
