"""The benchmarks match the code, and their results are reported alike."""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import tables, versus
from benchmarks.bench_model import DITS
from benchmarks.markdown import markdown
from benchmarks.products import Attention, Linear, calls, flops
from benchmarks.report import Report, progress, read
from benchmarks.table_kinds import BLOCKS
from benchmarks.variants import Job, Run, image_seconds

FILES = sorted(Path(benchmarks.__path__[0]).glob("*.py"))
COLUMNS = {"side": "4d", "seconds": "8.2f"}


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.stem != "__init__"])
def test_each_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(json=tmp_path / "results" / "made.json", rounds=2)


def test_rows_are_printed_and_kept_as_they_are_measured(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("made", options, images=COLUMNS)
    for side in progress([256, 512], "measuring"):
        report.add("images", side=side, seconds=side / 100)
        assert read(options.json)["tables"]["images"][-1] == {"side": side, "seconds": side / 100}
    content = read(options.json)
    assert content["options"] == {"rounds": 2}
    assert {"processor", "card", "threads", "torch", "commit", "date"} < content["machine"].keys()
    printed = ["side   seconds", " 256      2.56", " 512      5.12"]
    assert capsys.readouterr().out.splitlines() == printed
    assert [file.name for file in options.json.parent.iterdir()] == ["made.json"]


def test_a_report_resumes_from_its_file(options: argparse.Namespace) -> None:
    before = Report("made", options, images=COLUMNS)
    before.content["kernels"] = {"attention": "native"}
    before.add("images", side=256, seconds=1.0)
    resumed = Report("made", options, resume=True, images=COLUMNS)
    assert resumed.rows("images", side=256) == [{"side": 256, "seconds": 1.0}]
    assert resumed.content["kernels"] == {"attention": "native"}
    assert Report("made", options, images=COLUMNS).rows("images") == []


@pytest.mark.parametrize(("part", "value"), [("benchmark", "other"), ("torch", "1.0"), ("commit", "other")])
def test_results_of_another_machine_are_not_continued(
    options: argparse.Namespace, part: str, value: str
) -> None:
    Report("made", options, images=COLUMNS).add("images", side=256, seconds=1.0)
    content = read(options.json)
    (content if part in content else content["machine"])[part] = value
    options.json.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"--json: .*made.json has results of another"):
        Report("made", options, resume=True, images=COLUMNS)


@pytest.mark.parametrize("file", tables.PAGES, ids=lambda file: str(file.stem))
def test_a_page_has_the_tables_of_the_results_files(file: Path) -> None:
    page = file.read_text("utf-8")
    assert tables.current(page) == page, "run python -m benchmarks.tables"
    assert {name for _, name, _ in tables.BLOCK.findall(page)} <= BLOCKS.keys()
    assert tables.BLOCK.search(page)


def test_machines_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PLOTS", tmp_path)
    (tmp_path / "published-images-second.png").touch()
    for name, seconds in (("first", 1.0), ("second", 2.5)):
        (tmp_path / name).mkdir()
        machine = {"processor": name, "instructions": ["AVX2"], "cores": 2, "card": None, "torch": "2.13.0"}
        row = {"variant": "ours", "side": 256, "tokens": 100, "seconds": seconds}
        content = {"benchmark": "published", "machine": machine, "tables": {"images": [row]}}
        stages = {"images": {"report": content}, "tests": {"report": None}}
        (tmp_path / name / "gpu.json").write_text(json.dumps({"benchmark": "gpu", "stages": stages}))
    page = tables.current("<!-- published images -->\nold\n<!-- end -->\n", tmp_path)
    assert "old" not in page
    first, second = page.split("**second (AVX2), 2 cores, torch 2.13.0**:")
    assert "| 256 px | 100 tokens | 1.00 |" in first
    assert "| 256 px | 100 tokens | 2.50 |" in second
    assert "![" not in first
    assert "![published images on second](images/published-images-second.png)" in second
    assert page == tables.current(page, tmp_path)


def test_a_value_that_was_not_measured_leaves_its_cell_empty() -> None:
    rows = [{"a": 1.0, "b": None}, {"a": None, "b": None}]
    columns = [("a", "{a:.1f} s"), ("b", "{b:.1f}"), ("c", "{c}")]
    assert list(markdown(rows, columns)) == ["| a |", "|---|", "| 1.0 s |", "| |"]


def test_the_products_of_a_step() -> None:
    """The last block of both passes computes image tokens only."""
    dit = DITS["heads-64"] | {"num_layers": 2}
    width, inner, image, text = 768, 2048, 256, 30
    assert calls(dit, Job(256, text, 2))[:2] == [Linear(286, width, 3 * width), Attention(286, 286, 12, 64)]
    rows = [image + text, image, image, image]
    keys = [image + text, image + text, image, image]
    wanted = sum(
        2 * k * 3 * width**2 + 2 * r * (width**2 + 3 * width * inner) + 4 * r * k * width
        for r, k in zip(rows, keys, strict=True)
    )
    assert flops(dit, Job(256, text, 2)) == wanted


def made(seconds: float, pixel: int = 0) -> list[Run]:
    return [Run(seconds, [seconds, seconds], np.full((1, 1, 3), pixel, np.uint8))]


def test_a_row_compares_the_best_of_both_sides() -> None:
    runs = {"ours": made(2.0, 7), "ours, compiled": made(1.0, 7), "products": made(0.5)}
    runs |= {"diffusers": made(1.2, 3), "diffusers, compiled": made(3.0)}
    cells = versus.row(DITS["heads-64"], "bfloat16", Job(256, 30, 3), runs)
    assert cells["ours, compiled"] == pytest.approx(12)
    assert cells["ratio"] == pytest.approx(1.2)
    assert (cells["bar"], cells["verdict"]) == (1.25, "MISSED")
    assert cells["limit"] == pytest.approx(2.4)
    assert cells["difference"] == 4


def test_measured_rows_are_not_measured_again(tmp_path: Path) -> None:
    options = versus.parser().parse_args(["--sizes", "256,512", "--tokens", "30", "--steps", "3"])
    tables = {"images": versus.KEY | versus.RATIOS, "edits": versus.EDIT | versus.RATIOS}
    report = Report("versus", options, **tables, summary=versus.SUMMARY)
    cells = versus.row(DITS["heads-64"], "float32", Job(256, 30, 3), {"ours": made(1), "diffusers": made(2)})
    report.add("images", model="heads-64", dtype="float32", side=256, tokens=30, **cells)
    edits = [Job(256, 30, 3, 0.7), Job(512, 30, 3, 0.7)]
    assert versus.missing(report, options, "heads-64", "float32") == [Job(512, 30, 3), *edits]
    assert len(versus.missing(report, options, "heads-256", "float32")) == 4
    report.add("edits", model="heads-64", dtype="float32", side=256, tokens=30, strength=0.7, **cells)
    assert versus.missing(report, options, "heads-64", "float32") == [Job(512, 30, 3), edits[1]]


def test_an_edit_takes_fewer_steps() -> None:
    edit = Job(256, 30, 3, 0.7)
    assert edit.first_step == 3
    assert Job(256, 30, 3).first_step == 0
    assert image_seconds(made(1.0), edit.first_step) == pytest.approx(9)
    assert image_seconds(made(1.0)) == pytest.approx(12)


def test_the_summary_holds_the_minimum_and_the_median(tmp_path: Path) -> None:
    options = versus.parser().parse_args([])
    report = Report("versus", options, images=versus.KEY | versus.RATIOS, summary=versus.SUMMARY)
    for side, theirs in ((64, 1.3), (128, 1.45), (256, 1.6)):
        runs = {"ours": made(1), "diffusers": made(theirs)}
        cells = versus.row(DITS["heads-64"], "bfloat16", Job(side, 30, 3), runs)
        report.add("images", model="heads-64", dtype="bfloat16", side=side, tokens=30, **cells)
    versus.summarize(report, "bfloat16")
    (summary,) = report.rows("summary", dtype="bfloat16")
    assert summary["minimum"] == pytest.approx(1.3)
    assert summary["median"] == pytest.approx(1.45)
    assert summary["verdict"] == "MISSED"  # 1.5 in the median
    assert summary["time grows"] == 1
    assert summary["FLOPs grow"] > 2


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    from benchmarks.versus_plot import plot

    row = {"model": "heads-64", "dtype": "float32", "side": 256, "tokens": 30, "ratio": 1.2, "limit": 2.0}
    report = Report("versus", argparse.Namespace(), images=versus.KEY)
    report.content["tables"]["images"] = [row | {"bar": 1.15}]
    plot(report.content, tmp_path / "images" / "versus.png")
    assert (tmp_path / "images" / "versus.png").read_bytes().startswith(b"\x89PNG")
