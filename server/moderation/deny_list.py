"""Words and phrases that no prompt may contain, from a file that is reloaded when it changes.

# One per line, optionally with a category before a colon.
violence: some phrase
aword
"""

import unicodedata
from pathlib import Path

import regex

from server.moderation.moderator import CATEGORY, Categories
from server.offload import offload
from server.settings.config_error import ConfigError
from server.settings.watched_file import WatchedFile

NO_CATEGORY = "deny_list"
# Combining marks and invisible characters; `re` and `unicodedata` lack Default_Ignorable_Code_Point.
UNSEEN = regex.compile(r"(?V1)[[\p{Default_Ignorable_Code_Point}\p{Mn}\p{Me}\P{ccc=0}\p{C}]--\s]")
NOT_A_LETTER = regex.compile(r"[^\p{L}\p{N}\p{Mc}]+")


class DenyList:
    """Matches whole words, regardless of case, width, style, marks, and the separators between them."""

    name = "deny-list"

    def __init__(self, file: Path) -> None:
        """Raises ConfigError."""
        self._phrases = WatchedFile(file, _read, "deny list")

    async def moderate_text(self, text: str) -> Categories:
        phrases = self._phrases.value()
        return await offload(len(text) + len(phrases), lambda: _found(phrases, _plain(text)))


def _found(phrases: dict[str, str], plain: str) -> Categories:
    words = set(plain.split())
    # Searching the text is slow, and few phrases have all their words in it.
    near = (phrase for phrase in phrases if words.issuperset(phrase.split()))
    return frozenset(phrases[phrase] for phrase in near if phrase in plain)


def _read(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError):
        raise ConfigError("--deny-list-file: the file cannot be read") from None
    phrases = dict(
        _entry(number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not phrases:
        raise ConfigError("--deny-list-file: no entry")
    return phrases


def _entry(number: int, line: str) -> tuple[str, str]:
    category, colon, phrase = line.partition(":")
    if not (colon and CATEGORY.fullmatch(category.strip())):
        category, phrase = NO_CATEGORY, line
    plain = _plain(phrase)
    if not plain.strip():
        raise ConfigError(f"--deny-list-file: line {number} has no letter or digit")
    return plain, category.strip()


def _plain(text: str) -> str:
    """Lower case, one space around each word, no invisible characters."""
    # Remove marks first: normalizing sorts them, which takes seconds for a prompt of marks alone.
    folded = _decomposed(_decomposed(UNSEEN.sub("", text)).casefold())
    return f" {NOT_A_LETTER.sub(' ', UNSEEN.sub('', folded)).strip()} "


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFKD", text)
