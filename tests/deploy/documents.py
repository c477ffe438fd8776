"""Tables in the documents that a command prints. `python -m tests.deploy.documents` updates them."""

import subprocess
import sys
from pathlib import Path

from tests.deploy.chart import REPOSITORY

TABLES = {"benchmarks.roofline": "docs/operations.md", "benchmarks.fleet": "docs/scaling.md"}
END = "<!-- end -->\n"


def current(module: str) -> str:
    """Return the text of the document with an updated table."""
    printed = subprocess.check_output([sys.executable, "-m", module], text=True, cwd=REPOSITORY)
    head, marker, rest = document(module).read_text().partition(f"<!-- {module} -->\n")
    return f"{head}{marker}\n{printed}\n{END}{rest.partition(END)[2]}"


def document(module: str) -> Path:
    return REPOSITORY / TABLES[module]


if __name__ == "__main__":
    for name in TABLES:
        document(name).write_text(current(name))
