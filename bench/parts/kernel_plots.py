"""Two bar charts of a kernel bench: CPU time and memory, each peer as a multiple of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.harness import Row


def draw(rows: Sequence[Row], json_path: Path) -> None:
    """Write NAME_speed.png and NAME_memory.png beside NAME.json."""
    import matplotlib

    matplotlib.use("Agg")
    for kind, unit, label in (
        ("speed", "ms CPU", "CPU time, times ours"),
        ("memory", "MB", "extra memory, times ours"),
    ):
        chosen = [row for row in rows if row.unit == unit and row.ours and row.peer]
        if chosen:
            path = json_path.with_name(f"{json_path.stem}_{kind}.png")
            _bars(chosen, label, path)
            print(f"drawn to {path}")


def _bars(rows: Sequence[Row], label: str, path: Path) -> None:
    from matplotlib import pyplot

    values = [row.peer / row.ours for row in rows if row.peer and row.ours]
    names = [f"{row.what}\nagainst {row.peer_name}" for row in rows]
    figure, axes = pyplot.subplots(figsize=(10, 0.55 * len(rows) + 1.2))
    bars = axes.barh(range(len(rows)), values, color=["#2a6f97" if value >= 1 else "#bc4749" for value in values])
    axes.bar_label(bars, [f"{value:.3g}x" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
