"""The plot of `benchmarks.versus`: the ratio of each row, and its limit."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Row
from benchmarks.tables import name_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def plot(content: Row, file: Path) -> None:
    """Draw the ratios to diffusers at its best, one panel for each dtype."""
    rows = [row for row in content["tables"]["images"] if "ratio" in row]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(5 * max(1, len(dtypes)), 4), layout="constrained")
    panels = figure.subplots(1, max(1, len(dtypes)), sharey=True, squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=False):
        _draw(panel, [row for row in rows if row["dtype"] == dtype])
        panel.set_title(dtype)
    figure.suptitle(f"Seconds of diffusers at its best / seconds of ideoserve\n{name_of(content)}", size=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _draw(panel: Axes, rows: list[Row]) -> None:
    jobs = list(dict.fromkeys(_job(row) for row in rows))[::-1]
    for colour, model in zip(COLOURS, dict.fromkeys(row["model"] for row in rows), strict=False):
        mine: list[Any] = [row for row in rows if row["model"] == model]
        heights = [jobs.index(_job(row)) for row in mine]
        panel.plot([row["ratio"] for row in mine], heights, "o", color=colour, label=model)
        panel.plot([row["limit"] for row in mine], heights, "|", color=colour, markersize=14, alpha=0.6)
    panel.axvline(1, color="black", linewidth=0.8)
    panel.axvline(rows[0]["bar"], color="gray", linewidth=0.8, linestyle="--", label="bar")
    panel.set_yticks(range(len(jobs)), jobs)
    panel.set_xlim(left=0.9)
    panel.grid(axis="x", alpha=0.3)
    panel.legend(loc="best", fontsize=8)
    panel.set_xlabel("ratio (|: limit of the products alone)")


def _job(row: Row) -> str:
    return f"{row['side']} px, {row['tokens']} tokens"
