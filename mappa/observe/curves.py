"""One picture of a run: four panels over the steps, one line per role in the same colour throughout."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mappa.errors import JournalError
from mappa.observe.metrics import FILE_NAME as METRICS
from mappa.observe.metrics import RoleMetrics, StepMetrics, read_metrics
from mappa.observe.summary import replace_file

FILE_NAME = "curves.png"
# Okabe and Ito's colours: told apart without seeing red and green, and when printed in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TEAM = "#222222"


def curves(run_folder: Path) -> Path:
    """Draw metrics.jsonl of a run into curves.png beside it. Returns the picture's path.

    Raises JournalError when there is no step to draw.
    """
    steps = read_metrics(run_folder / METRICS)
    if not steps:
        raise JournalError(f"{run_folder / METRICS} has no step to draw; train first")
    roles = list(dict.fromkeys(role for metrics in steps for role in metrics.roles))
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle(run_folder.resolve().name, fontweight="bold")
    (score, success), (distinct, kl) = figure.subplots(2, 2, sharex=True)
    _draw(score, "mean score (0 to 10)", steps, roles, lambda role: role.score)
    _draw(success, "success", steps, roles, lambda role: role.success)
    _draw(distinct, "distinct actions", steps, roles, lambda role: role.distinct)
    _draw(kl, "KL to the base (nats per token)", steps, roles, lambda role: role.kl)
    numbers = [metrics.step for metrics in steps]
    success.plot(
        numbers, _gaps(metrics.success for metrics in steps), "o-", ms=4, lw=2.4, color=_TEAM, label="pipeline"
    )
    score.set_ylim(-0.3, 10.3)
    for panel in (success, distinct):
        panel.set_ylim(-0.03, 1.03)
        panel.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    kl.set_ylim(bottom=min(0.0, kl.get_ylim()[0]))
    for panel in (distinct, kl):
        panel.set_xlabel("step")
    handles, labels = success.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _save(figure, run_folder / FILE_NAME)


def _draw(
    panel: Axes,
    title: str,
    steps: Sequence[StepMetrics],
    roles: Sequence[str],
    measure: Callable[[RoleMetrics], float | None],
) -> None:
    numbers = [metrics.step for metrics in steps]
    for index, role in enumerate(roles):
        values = _gaps(measure(metrics.roles[role]) if role in metrics.roles else None for metrics in steps)
        panel.plot(numbers, values, "o-", ms=3, lw=1.6, color=_COLOURS[index % len(_COLOURS)], label=role)
    panel.set_title(title, loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.25)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _gaps(values: Iterable[float | None]) -> list[float]:
    """What was not measured is a gap in the line."""
    return [math.nan if value is None else value for value in values]


def _save(figure: Figure, path: Path) -> Path:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    replace_file(path, picture.getvalue())
    return path
