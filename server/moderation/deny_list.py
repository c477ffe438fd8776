"""Words and phrases that no prompt may hold, from a file that may change while the server runs.

# One per line; a category before a colon.
violence: some phrase
aword
"""

import logging
import re
import unicodedata
from pathlib import Path

from server.config_error import ConfigError
from server.moderation.judge import CATEGORY, Categories

logger = logging.getLogger(__name__)
NO_CATEGORY = "deny_list"
NOT_A_LETTER = re.compile(r"[\W_]+")
# What is not seen beside the format characters: strokes and accents that no letter has, fillers, selectors.
UNSEEN = re.compile("[\u0300-\u036f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


class DenyList:
    """Whole words, whatever their case, width and what stands between them."""

    name = "deny-list"

    def __init__(self, file: Path) -> None:
        """Raises ConfigError."""
        self._file = file
        self._version = _version(file)
        self._phrases = _read(file)

    async def judge_text(self, text: str) -> Categories:
        self._reload()
        plain = _plain(text)
        return frozenset(category for phrase, category in self._phrases.items() if phrase in plain)

    def _reload(self) -> None:
        """A file that cannot be read leaves the list as it was."""
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._phrases = _read(self._file)
            logger.info("deny list read again: %d", len(self._phrases))
        except ConfigError as error:
            logger.error("the deny list stays as it was: %s", error)


def _version(file: Path) -> object:
    try:
        status = file.stat()
    except OSError as error:
        return str(error)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        raise ConfigError("--deny-list-file: the file cannot be read") from None
    entries = [_entry(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return {phrase: category for phrase, category in entries if phrase.strip()}


def _entry(line: str) -> tuple[str, str]:
    category, colon, phrase = line.partition(":")
    if colon and CATEGORY.fullmatch(category.strip()):
        return _plain(phrase), category.strip()
    return _plain(line), NO_CATEGORY


def _plain(text: str) -> str:
    """Lower case, one space around each word, nothing invisible."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    return f" {NOT_A_LETTER.sub(' ', UNSEEN.sub('', visible)).strip()} "
