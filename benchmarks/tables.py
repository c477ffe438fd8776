"""Print the tables of the pages in docs: `python -m benchmarks.tables`.

Results lie in benchmarks/results/MACHINE/BENCHMARK.json, as `--json` writes them. A page marks the place of
each table with `<!-- BENCHMARK TABLE -->` and `<!-- end -->`. The command replaces what is between them by
that table of every machine that has it, and by the plot docs/images/BENCHMARK-TABLE-MACHINE.png, if any. A
new machine needs its files only.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import ROOT, Row, read

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PAGES = tuple(DOCS / name for name in ("performance.md", "precision.md", "fleet.md", "scaling.md"))
PLOTS = DOCS / "images"
BLOCK = re.compile(r"(<!-- (?P<name>(?!end)[\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)

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


def versus(rows: Rows) -> Iterator[str]:
    columns = [
        ("model", "{model}"),
        ("dtype", "{dtype}"),
        ("side", "{side} px"),
        ("prompt", "{tokens} tokens"),
        ("this engine", "{ours:.1f}"),
        ("compiled", "{ours, compiled:.1f}"),
        ("diffusers", "{diffusers:.1f}"),
        ("compiled", "{diffusers, compiled:.1f}"),
        ("defaults", "{diffusers, defaults:.1f}"),
        ("ratio", "{ratio:.2f}"),
        ("ratio to defaults", "{ratio to defaults:.1f}"),
        ("products alone", "{products:.1f}"),
        ("GFLOP/s", "{GFLOP/s:.0f}"),
        ("limit", "{limit:.2f}"),
    ]
    yield from markdown([_with_defaults(row) for row in rows], columns)


def _with_defaults(row: Row) -> Row:
    ours = [row[name] for name in ("ours", "ours, compiled") if row.get(name)]
    theirs = row.get("diffusers, defaults")
    return row | {"ratio to defaults": theirs / min(ours) if theirs else None}


def versus_edits(rows: Rows) -> Iterator[str]:
    columns = [("model", "{model}"), ("dtype", "{dtype}"), ("side", "{side} px"), ("strength", "{strength}")]
    columns += [("this engine", "{ours:.1f}"), ("compiled", "{ours, compiled:.1f}")]
    columns += [("diffusers", "{diffusers:.1f}"), ("compiled", "{diffusers, compiled:.1f}")]
    yield from markdown(rows, [*columns, ("ratio", "{ratio:.2f}"), ("limit", "{limit:.2f}")])


def versus_summary(rows: Rows) -> Iterator[str]:
    columns = [("dtype", "{dtype}"), ("rows", "{rows}"), ("smallest ratio", "{minimum:.2f} (target {bar})")]
    columns += [("median", "{median:.2f} (target {median bar})"), ("time grows", "{time grows:.1f} times")]
    yield from markdown(rows, [*columns, ("FLOPs grow", "{FLOPs grow:.1f} times")])


def versus_http(rows: Rows) -> Iterator[str]:
    columns = [("dtype", "{dtype}"), ("this server", "{ours:.1f}"), ("diffusers", "{diffusers:.1f}")]
    columns += [("ratio", "{ratio:.2f}"), ("outside the engine", "{outside:.1%}")]
    yield from markdown(rows, columns)


def batching(rows: Rows) -> Iterator[str]:
    columns = [("", "{what}"), ("seconds", "{seconds:.3f}"), ("compared with", "{against}")]
    columns += [("seconds", "{other_seconds:.3f}"), ("times as fast", "{ratio:.2f}")]
    yield from markdown(rows, [*columns, ("target", "{bar:.2f}")])


def adapter_steps(rows: Rows) -> Iterator[str]:
    columns = [("rank", "{rank}"), ("adapters", "{adapters}"), ("products", "{products}")]
    columns += [("step", "{seconds:.2f} s"), ("plain", "{plain:.2f} s"), ("ratio", "{ratio:.2f}")]
    columns += [("target", "{bar:.2f}"), ("merged, one after the other", "{in turn:.2f} s")]
    yield from markdown(rows, [*columns, ("merging one", "{merge:.2f} s")])


def adapter_loading(rows: Rows) -> Iterator[str]:
    columns = [("rank", "{rank}"), ("loaded", "{loaded}, {MB:.0f} MB"), ("steps meanwhile", "{steps}")]
    columns += [("usual step", "{usual:.2f} s"), ("longest", "{longest:.2f} s"), ("ratio", "{ratio:.2f}")]
    yield from markdown(rows, [*columns, ("target", "{bar:.2f}")])


def parts(rows: Rows) -> Iterator[str]:
    made = spread([_slowdown(row) for row in rows], ["without"], _dtype_and_side, "text")
    names = dict.fromkeys(map(_dtype_and_side, rows))
    yield from markdown(made, [("without", "{without}"), *((name, f"{{{name}}}") for name in names)])


def _dtype_and_side(row: Row) -> str:
    return f"{row['dtype']}, {row['side']} px"


def _slowdown(row: Row) -> Row:
    slower = row["slower"]
    return row | {"text": f"{row['seconds']:.1f} s" if slower is None else f"{slower:+.1%}"}


def images(rows: Rows) -> Iterator[str]:
    rows = [_our_name(row) for row in rows]
    made = spread(rows, ["side", "tokens"], lambda row: row["variant"], "seconds")
    columns = [("side", "{side} px"), ("prompt", "{tokens} tokens")]
    names = dict.fromkeys(row["variant"] for row in rows)
    yield from markdown(made, [*columns, *((name, f"{{{name}:.2f}}") for name in names)])


def batches(rows: Rows) -> Iterator[str]:
    rows = [_our_name(row) | {"text": f"{row['steps/s']:.3g}"} for row in rows]
    made = spread(rows, ["side", "variant"], lambda row: _images(row["batch"]), "text")
    names = dict.fromkeys(_images(row["batch"]) for row in rows)
    columns = [("side", "{side} px"), ("", "{variant}"), *((name, f"{{{name}}}") for name in names)]
    yield from markdown(made, columns)


def _our_name(row: Row) -> Row:
    return row | {"variant": row["variant"].replace("ours", "this engine")}


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def kernels(rows: Rows) -> Iterator[str]:
    names = ("model", "dtype", "operation", "before", "after", "gain", "candidates")
    fields = ("model", "dtype", "case", "before", "after", "gain:.2f", "all")
    yield from markdown(rows, [(name, f"{{{field}}}") for name, field in zip(names, fields, strict=True)])


def kernel_steps(rows: Rows) -> Iterator[str]:
    rows = [row | {"ratio": row["before"] / row["after"]} for row in rows]
    columns = [
        ("model", "{model}"),
        ("dtype", "{dtype}"),
        ("side", "{side} px"),
        ("before", "{before:.4f} s"),
    ]
    columns += [("after", "{after:.4f} s"), ("threads", "{threads}"), ("ratio", "{ratio:.2f}")]
    yield from markdown(rows, columns)


def starts(rows: Rows) -> Iterator[str]:
    seconds = ("listening", "imports", "load", "warm-up", "ready", "first image")
    columns = [("start", "{start}"), *((name, f"{{{name}, s:.2f}} s") for name in seconds)]
    yield from markdown(rows, columns)


def neighbour_servers(rows: Rows) -> Iterator[str]:
    columns = [("alone", "{alone, images/s:.2f}")]
    columns += [("first of two", "{first of two:.2f}"), ("second of two", "{second of two:.2f}")]
    yield from markdown(rows, [*columns, ("together / alone", "{ratio:.2f}")])


def neighbour_waits(rows: Rows) -> Iterator[str]:
    columns = [("at barriers", "{at barriers}"), ("alone", "{alone, steps/s:.2f}")]
    yield from markdown(rows, [*columns, ("two together", "{together:.2f}"), ("ratio", "{ratio:.2f}")])


def precision_layers(rows: Rows) -> Iterator[str]:
    """Each kind of layer of the demo model; of other models, whole blocks and parts."""
    wholes = ("block", "all", "--matmul")
    rows = [row for row in rows if row["model"] == "demo" or row["layers"].startswith(wholes)]
    columns = [("model", "{model}"), ("part", "{part}"), ("layers in fp8", "{layers}")]
    columns += [("weights", "{weights:.1%}"), ("largest error of a product", "{product:.1%}")]
    yield from markdown(rows, [*columns, ("error of the part", "{output:.2%}")])


def precision_images(rows: Rows) -> Iterator[str]:
    columns = [("model", "{model}"), ("precision", "{precision}, {dtype}"), ("last latents", "{latents:.1%}")]
    yield from markdown(rows, [*columns, ("pixels, mean", "{mean:.2f}"), ("most", "{most}")])


def demo_precision(rows: Rows) -> Iterator[str]:
    names = ("background", "colour", "shape", "letter", "centre")
    columns = [("precision", "{precision}"), ("images", "{images}")]
    columns += [(name, f"{{{name}:.1%}}") for name in names]
    yield from markdown(rows, [*columns, ("largest loss", "{points:.1f} points")])


def uploads(rows: Rows) -> Iterator[str]:
    columns = [("request", "{what}"), ("image", "{MB:.1f} MB"), ("HTTP process", "{server CPU, ms:.1f} ms")]
    yield from markdown(rows, [*columns, ("decoder", "{decoder CPU, ms:.0f} ms")])


def upload_rates(rows: Rows) -> Iterator[str]:
    columns = [("clients", "{clients}"), ("uploads", "{uploads/s:.1f} /s"), ("rate", "{MB/s:.0f} MB/s")]
    columns += [
        ("longest stall of the event loop", "{stall, ms:.0f} ms"),
        ("of it own work", "{own work, ms:.0f} ms"),
    ]
    yield from markdown(rows, columns)


def hostile_files(rows: Rows) -> Iterator[str]:
    columns = [
        ("file", "{file}"),
        ("size", "{kB:.1f} kB"),
        ("status", "{status}"),
        ("processor time of the decoder", "{CPU, s:.2f} s"),
    ]
    columns += [
        ("peak of the decoder", "{decoder MB:.0f} MB"),
        ("peak of the HTTP process", "{server MB:.0f} MB"),
    ]
    yield from markdown(rows, columns)


def queue_cost(rows: Rows) -> Iterator[str]:
    columns = [("request", "{request}"), ("server alone", "{alone, us:.0f} µs")]
    yield from markdown(rows, [*columns, ("front", "{front, us:.0f} µs"), ("ratio", "{ratio:.2f}")])


def queue_first(rows: Rows) -> Iterator[str]:
    columns = [("request", "{server}"), ("median", "{median, ms:.1f} ms"), ("longest", "{worst, ms:.1f} ms")]
    yield from markdown(rows, columns)


def queue_affinity(rows: Rows) -> Iterator[str]:
    columns = [("side", "{side} px"), ("batch", "{batch}"), ("step", "{ms a step:.0f} ms")]
    yield from markdown(rows, [*columns, ("of two sizes", "{two sizes:+.0%}")])


def fleet_systems(rows: Rows) -> Iterator[str]:
    names = ("idle, s:.3f", "p50, s:.2f", "p99, s:.2f", "p50 wait, s:.2f", "p99 wait, s:.2f")
    columns = [("", "{system}"), *((name.partition(",")[0], f"{{{name}}} s") for name in names)]
    yield from markdown(rows, [*columns, ("answered", "{answered}"), ("refused", "{refused}")])


BLOCKS: dict[str, Callable[[Rows], Iterator[str]]] = {
    "versus images": versus,
    "versus edits": versus_edits,
    "versus summary": versus_summary,
    "versus-http servers": versus_http,
    "batching ratios": batching,
    "adapters steps": adapter_steps,
    "adapters loading": adapter_loading,
    "parts slowdown": parts,
    "kernels kernels": kernels,
    "kernels steps": kernel_steps,
    "ready starts": starts,
    "neighbour servers": neighbour_servers,
    "neighbour waits": neighbour_waits,
    "precision layers": precision_layers,
    "precision images": precision_images,
    "demo-quality precision": demo_precision,
    "uploads requests": uploads,
    "uploads rate": upload_rates,
    "uploads files": hostile_files,
    "queue cost": queue_cost,
    "queue first": queue_first,
    "queue affinity": queue_affinity,
    "fleet fleet": fleet_systems,
    "published images": images,
    "published batches": batches,
}


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
