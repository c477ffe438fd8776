"""The documentation names things that exist: links, anchors, files, modules and flags."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from server.settings.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "models/**/*.md")
    for page in ROOT.glob(pattern)
)
FLAGS = {"--help"} | {"--" + name.replace("_", "-") for name in Settings.model_fields}
TOP = "server|engine|models|benchmarks|deploy|docs|tests"

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(rf"(?<![\w./-])(?:{TOP})/[\w./-]*\w")
MODULE = re.compile(r"python -m ([\w.]+)")
FLAG = re.compile(r"`(--[a-z0-9-]+)")


@cache
def text(page: Path) -> str:
    return page.read_text("utf-8")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links whose file or anchor does not exist."""
    links = [link for link in LINK.findall(FENCE.sub("", text(page))) if "://" not in link]
    return [link for link in links if not _resolves(page, *link.partition("#")[::2])]


def _resolves(page: Path, path: str, anchor: str) -> bool:
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    assert broken_links(page) == []
    assert [file for file in FILE.findall(text(page)) if not (ROOT / file).exists()] == []
    assert [name for name in MODULE.findall(text(page)) if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", ["http", "prompts", "engine", "performance", "precision"])
def test_flags_in_the_docs_are_settings(page: str) -> None:
    assert set(FLAG.findall(text(ROOT / f"docs/{page}.md"))) <= FLAGS
