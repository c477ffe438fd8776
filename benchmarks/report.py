"""Results of a benchmark: a table on stdout, rows in a JSON file, progress on stderr.

A results file is `{"benchmark": name, "machine": {...}, "options": {...}, "tables": {name: [row, ...]}}`. It
is rewritten after every row. `python -m benchmarks.tables` prints the tables of the docs from
such files.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from engine.environment import available_cpus

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX",
}
# Options that say where results go, not what is measured.
NOT_RECORDED = {"json", "plot", "sheet", "done"}

Row = dict[str, Any]
# Name of each column and its format specification with the width, for example "9.2f".
Columns = dict[str, str]
Item = TypeVar("Item")


class Report:
    """Prints the rows of each table as they are measured and keeps them in `--json`."""

    def __init__(
        self, benchmark: str, options: argparse.Namespace, resume: bool = False, **tables: Columns
    ) -> None:
        """With `resume`, start from the rows that the file holds. They must be of the same machine."""
        self._file: Path | None = getattr(options, "json", None)
        self._columns = tables
        self._printed = ""
        self.content: Row = {
            "benchmark": benchmark,
            "machine": machine(),
            "options": _plain(options),
            "tables": {name: [] for name in tables},
        }
        if resume and self._file and self._file.exists():
            self._take_over(read(self._file))

    def add(self, table: str, **cells: Any) -> None:
        """Print a row and write the file. A cell may be None or missing."""
        self.content["tables"][table].append(cells)
        columns = self._columns[table]
        if self._printed != table:
            say("  ".join(f"{name:{_aligned(name, spec)}}" for name, spec in columns.items()))
        self._printed = table
        say("  ".join(_cell(cells.get(name), name, spec) for name, spec in columns.items()))
        self.write()

    def rows(self, table: str, **key: Any) -> list[Row]:
        """The rows of a table that have all these cells."""
        return [row for row in self.content["tables"][table] if key.items() <= row.items()]

    def write(self) -> None:
        if self._file:
            write(self._file, self.content)

    def _take_over(self, before: Row) -> None:
        for part in ("benchmark", "machine"):
            if comparable(before[part]) != comparable(self.content[part]):
                raise SystemExit(f"--json: {self._file} has results of another {part}: {before[part]}")
        tables = self.content["tables"] | before["tables"]
        self.content = {**before, "options": self.content["options"], "tables": tables}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks share."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")


def comparable(part: Any) -> Any:
    """A part of a results file without its date."""
    return {name: value for name, value in part.items() if name != "date"} if isinstance(part, dict) else part


def machine() -> Row:
    """What the results depend on: processor, card, threads, versions, commit and date."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": processor(),
        "instructions": [name for key, name in INSTRUCTIONS.items() if capabilities.get(key)],
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Model name of the CPU, with family and model number, since some names are generic."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        return "unknown"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = f"family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"
    return f"{facts.get('model name', 'unknown')} ({numbers})"


def commit() -> str:
    """The commit of the source, with `-dirty` if Python files differ; empty outside a repository."""
    try:
        changed = _git("diff", "--name-only", "HEAD", "--", "*.py")
        return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*command: str) -> str:
    run = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def read(file: Path) -> Row:
    """The content of a results file."""
    content: Row = json.loads(file.read_text("utf-8"))
    return content


def write(file: Path, content: Row) -> None:
    """Replace the file in one operation, so that it is complete at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    os.replace(part, file)


def progress(items: Iterable[Item], what: str, **options: Any) -> "tqdm[Item]":
    """Iterate with a progress bar on stderr, if that is a terminal."""
    return tqdm(items, desc=what, leave=False, disable=None, **options)


def say(line: str) -> None:
    """Print a line above the progress bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def verdict(ratio: float, bar: float) -> str:
    """Whether a ratio reaches its bar."""
    return "ok" if ratio >= bar else "MISSED"


def several(kind: type[Item]) -> Any:
    """An argparse type: comma-separated values."""
    return lambda text: [kind(part) for part in text.split(",") if part]  # type: ignore[call-arg]


def _plain(options: argparse.Namespace) -> Row:
    named = {name: value for name, value in vars(options).items() if name not in NOT_RECORDED}
    plain: Row = json.loads(json.dumps(named, default=str))
    return plain


def _aligned(name: str, spec: str) -> str:
    """Format specification of a header: as wide as its cells."""
    width = re.match(r"[<>]?(\d*)", spec)
    digits = int(width[1] or 0) if width else 0
    return f"{'<' if spec.startswith('<') else '>'}{max(len(name), digits)}"


def _cell(value: Any, name: str, spec: str) -> str:
    text = "" if value is None else f"{value:{spec}}"
    return f"{text:{_aligned(name, spec)}}"
