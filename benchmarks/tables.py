"""Print the tables of the pages in docs: `python -m benchmarks.tables`.

Results lie in benchmarks/results/MACHINE/BENCHMARK.json, as `--json` writes them. A page marks the place of
each table with `<!-- BENCHMARK TABLE -->` and `<!-- end -->`. The command replaces what is between them by
that table of every machine that has it, and by the plot docs/images/BENCHMARK-TABLE-MACHINE.png, if any. A
new machine needs its files only.
"""

import argparse
import re
from pathlib import Path

from benchmarks.report import ROOT, Row, read
from benchmarks.table_kinds import BLOCKS

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PAGES = tuple(DOCS / name for name in ("performance.md", "precision.md", "fleet.md", "scaling.md"))
PLOTS = DOCS / "images"
BLOCK = re.compile(r"(<!-- (?P<name>(?!end)[\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def reports(folder: Path) -> dict[str, list[Row]]:
    """The results of a machine by benchmark. The file of `benchmarks.gpu` holds those of its stages."""
    found: dict[str, list[Row]] = {}
    for file in sorted(folder.glob("*.json")):
        content = read(file)
        stages = [stage.get("report") for stage in content.get("stages", {}).values()]
        for each in stages or [content]:
            if each:
                found.setdefault(each["benchmark"], []).append(each)
    return found


def block(name: str, results: Path = RESULTS) -> str:
    """The table `name` (benchmark and table) of every machine that has it, each below the machine's name."""
    benchmark, table = name.split()
    lines = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        found = [each for each in reports(folder).get(benchmark, []) if each["tables"].get(table)]
        rows = [row for each in found for row in each["tables"][table]]
        if rows:
            lines += ["", f"**{name_of(found[0])}**:", "", *BLOCKS[name](rows)]
        plot = PLOTS / f"{benchmark}-{table}-{folder.name}.png"
        if rows and plot.exists():
            lines += ["", f"![{benchmark} {table} on {folder.name}](images/{plot.name})"]
    return "\n".join([*lines, "", ""])


def name_of(content: Row) -> str:
    """The machine and the version of torch, for example "AMD EPYC (AVX2), 2 cores, torch 2.13.0"."""
    machine = content["machine"]
    processor = machine["processor"].partition(" (family")[0]
    instructions = ", ".join(machine["instructions"])
    device = machine["card"] or f"{processor} ({instructions}), {machine['cores']} cores"
    note = f", {machine['note']}" if machine.get("note") else ""
    return f"{device}, torch {machine['torch'].partition('+')[0]}{note}"


def current(page: str, results: Path = RESULTS) -> str:
    """The text of the page with its tables replaced."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found['name'], results)}{found[3]}", page)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for page in PAGES:
        page.write_text(current(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
