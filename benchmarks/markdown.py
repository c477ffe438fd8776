"""Markdown tables from rows of results."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from benchmarks.report import Row

# Heading and cell of each column. A cell is a format string over the row's values.
Columns = Sequence[tuple[str, str]]
Rows = list[Row]


def markdown(rows: Iterable[Row], columns: Columns) -> Iterator[str]:
    """The lines of a table. A cell whose value the row lacks is empty; an empty column is omitted."""
    cells = [[_cell(row, template) for _, template in columns] for row in rows]
    kept = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    yield _line(columns[index][0] for index in kept)
    yield "|" + "---|" * len(kept)
    yield from (_line(row[index] for index in kept) for row in cells)


def _line(cells: Iterable[str]) -> str:
    return re.sub(r"  +\|", " |", "| " + " | ".join(cells) + " |")


def _cell(row: Row, template: str) -> str:
    names = re.findall(r"{([^:}]+)", template)
    return "" if any(row.get(name) is None for name in names) else template.format_map(row)


def spread(rows: Rows, key: Sequence[str], by: Callable[[Row], str], value: str) -> Rows:
    """One row for each value of `key`, which has the `value` of every row under the name `by` gives it."""
    made: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        index = tuple(row[name] for name in key)
        made.setdefault(index, dict(zip(key, index, strict=True)))[by(row)] = row[value]
    return list(made.values())
