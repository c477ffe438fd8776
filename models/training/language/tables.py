"""All strings of the vocabulary and the frames."""

import re
from collections.abc import Iterator

from models.training.language import frames, vocabulary


def strings(value: object) -> Iterator[str]:
    """The strings in a table, without the places of frames."""
    if isinstance(value, str):
        yield re.sub(r"{\w+}", " ", value)
    elif isinstance(value, frames.Frames):
        yield from strings((value.trained, value.held_out))
    elif isinstance(value, dict):
        yield from strings((*value, *value.values()))
    elif isinstance(value, tuple):
        for each in value:
            yield from strings(each)


def texts() -> list[str]:
    """The strings of all tables, except of the words that mean nothing to the model."""
    named = {**vars(vocabulary), **vars(frames)}
    tables = [table for name, table in named.items() if name.isupper() and name != "STRANGE"]
    return list(strings(tuple(tables)))


def short_words() -> list[str]:
    """Words of the language that a scene may show: upper case, of 2 to 4 letters."""
    found = {word.upper() for text in texts() for word in re.findall(r"\b[a-z]{2,4}\b", text)}
    return sorted(found)
