"""The columns of each table of docs/performance.md and docs/precision.md, by benchmark and table."""

from collections.abc import Callable, Iterator

from benchmarks.markdown import Rows, markdown, spread
from benchmarks.report import Row


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


def loads(rows: Rows) -> Iterator[str]:
    columns = [
        ("part", "{part}"),
        ("files", "{cache}, {GB:.2f} GB"),
        ("one thread reads", "{read, GB/s:.2f} GB/s"),
    ]
    columns += [("loaded", "{GB/s:.2f} GB/s"), ("seconds", "{seconds:.1f}"), ("kept", "{kept, GB:.2f} GB")]
    yield from markdown(rows, [*columns, ("peak / kept", "{peak / kept:.3f}")])


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
    "load_rate loads": loads,
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
