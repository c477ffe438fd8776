"""The plot of `benchmarks.batching`: how long a short request takes that arrives while long ones run."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report import Row
from benchmarks.tables import name_of

COLOURS = ("#009e73", "#0072b2", "#d55e00")


def plot(content: Row, file: Path) -> None:
    """Draw the short request alone, with step-level batching and with request-level batching."""
    rows = {row["against"]: row for row in content["tables"]["ratios"] if "beside" in row["what"]}
    alone, whole = rows["alone"], rows["by whole requests"]
    bars = {
        "alone": alone["other_seconds"],
        "ideoserve:\njoins at the next step": whole["seconds"],
        "batched by request:\nwaits for the batch": whole["other_seconds"],
    }
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(bars), list(bars.values()), color=COLOURS)
    axes.bar_label(drawn, fmt="%.2f s", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds until the image of a 12-step request, four 48-step requests are running")
    figure.suptitle(name_of(content), size=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
