"""What an evaluation found, and how it is shown: the base and the trained team side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct, field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mappa.observe.measures import Share
from mappa.observe.statistics import paired_difference


class EvaluationResult(Struct, frozen=True, kw_only=True):
    """A team measured on the held-out tasks. Shares are 0 to 1, intervals 95 %.

    >>> EvaluationResult(mode="sampled", success=0.83, ci=(0.71, 0.92), roles={"modeler": (0.9, 0.81, 0.96)},
    ...                  tasks={"Boston": 0.875}, metric_mean=0.61, episodes=48, lost=0)
    """

    mode: Literal["sampled", "greedy"]
    success: float
    """Share of episodes that succeeded from end to end."""
    ci: tuple[float, float]
    roles: dict[str, Share]
    """Success of each role's own part."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Success by task."""
    metric_mean: float | None = None
    """Mean over the submissions that could be graded: 0 = the baseline's metric, 1 = the reference's."""
    episodes: int
    lost: int = 0
    """Episodes that ended in an error; they count as failures."""
    losses: dict[str, str] = field(default_factory=dict)
    """Of the tasks of lost episodes: how many there were, and why the first one was."""
    cut: int = 0
    """Episodes that were ended at their deadline; they count as failures."""
    repaired: int = 0
    """Actions that worked from reference artefacts. An evaluation repairs nothing, so anything but 0 is a fault."""
    measures: dict[str, Share] = field(default_factory=dict)
    """Metrics and pass@k by name (see measures.py)."""
    habits: dict[str, dict[str, Share]] = field(default_factory=dict)
    """Tool use, errors, truncation and length of each role."""
    by_task: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by task, for paired tests: `submission`, `coder` (its success), `coder: tokens`."""
    refused: int = 0
    """Tasks of the source that could not be used."""
    overlaps: tuple[str, ...] = ()
    """Held-out tasks that share something with a training task, and what."""


def evaluation_table(before: EvaluationResult, after: EvaluationResult | None = None) -> Table:
    """Pipeline, roles and metric of one result, or of two with the change between them."""
    how = f"{len(before.tasks)} held-out tasks, {before.episodes} {before.mode} episodes, no repairs, 95 % intervals"
    table = Table(title=how, title_justify="left", title_style="", box=SIMPLE_HEAD)
    table.add_column("success")
    for heading in ("base",) if after is None else ("base", "trained", "change"):
        table.add_column(heading, justify="right")
    for name, *cells in evaluation_rows(before, after):
        table.add_row(name, *cells, style="bold" if name == "pipeline" else "")
    return table


def evaluation_text(before: EvaluationResult, after: EvaluationResult | None = None) -> str:
    """The same table in plain characters, for logs and files."""
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as captured:
        console.print(evaluation_table(before, after))
    return captured.get()


def is_share(name: str) -> bool:
    """Shown in percent: all but the tokens of an action and a score between baseline and reference."""
    return not name.startswith("normalised") and not name.endswith("tokens")


def evaluation_rows(before: EvaluationResult, after: EvaluationResult | None) -> Iterator[list[str]]:
    """The table's rows as text: a label, then a cell per result and, of two, the change."""
    results = [before] if after is None else [before, after]
    yield ["pipeline", *_shares([(result.success, *result.ci) for result in results])]
    for role in dict.fromkeys(role for result in results for role in result.roles):
        yield [f"  {role}", *_shares([result.roles.get(role) for result in results])]
    yield ["metric: baseline 0, reference 1", *_metrics([result.metric_mean for result in results])]
    for name in dict.fromkeys(name for result in results for name in result.measures):
        yield [name, *_numbers([result.measures.get(name) for result in results], percent=is_share(name))]
    for role in dict.fromkeys(role for result in results for role in result.habits):
        for name in dict.fromkeys(name for result in results for name in result.habits.get(role, ())):
            shares = [result.habits.get(role, {}).get(name) for result in results]
            yield [f"  {role}: {name}", *_numbers(shares, percent=is_share(name))]
    if any(result.lost for result in results):
        yield ["episodes lost, counted failed", *(str(result.lost) for result in results)]
    if any(result.cut for result in results):
        yield ["episodes cut at their deadline, likewise", *(str(result.cut) for result in results)]


def paired_text(before: EvaluationResult, after: EvaluationResult) -> str:
    """The change of the success rate over the tasks that both measured, with the paired test, in one line."""
    if not before.tasks.keys() & after.tasks.keys():
        return "no task was measured both times, so there is nothing to compare"
    return _paired("success", before.tasks, after.tasks)


def paired_lines(before: EvaluationResult, after: EvaluationResult) -> Iterator[str]:
    """The same of every measure, a line each; of a measure that both have of some task."""
    yield paired_text(before, after)
    for name, values in before.by_task.items():
        if values.keys() & after.by_task.get(name, {}).keys():
            yield _paired(name, values, after.by_task[name])


def losses_text(result: EvaluationResult, most: int = 20) -> str:
    """Which tasks lost episodes, and why, a line each; empty where none did."""
    lines = [f"{task}: {why}" for task, why in result.losses.items()]
    return "\n".join([*lines[:most], *([f"and {len(lines) - most} more tasks"] if len(lines) > most else [])])


def _paired(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    shared = [task for task in before if task in after]
    gap, low, high, p = paired_difference([[before[task]] for task in shared], [[after[task]] for task in shared])
    scale, unit = (100, " points") if is_share(name) else (1, "")
    return (
        f"{name}, paired over {len(shared)} tasks: {scale * gap:+.1f}{unit} "
        f"[{scale * low:+.1f}, {scale * high:+.1f}], sign-flip p = {p:.2g}"
    )


def contamination_text(result: EvaluationResult) -> str:
    """What is known of overlaps between held-out and training tasks, a line each."""
    if not result.overlaps:
        return "no held-out task shares its text, a 13-gram, rows or columns with a training task"
    return "\n".join([f"{len(result.overlaps)} held-out tasks overlap with training tasks:", *result.overlaps])


def _numbers(shares: list[Share | None], *, percent: bool) -> list[str]:
    return _cells(shares, *((100, 1, " %", "") if percent else (1, 2, "", "")))


def _shares(shares: list[Share | None]) -> list[str]:
    return _cells(shares, 100, 0, " %", " points")


def _cells(shares: list[Share | None], scale: int, digits: int, unit: str, of_change: str) -> list[str]:
    """Each with its interval, and of two the change; `none` for what a result lacks."""
    cells = [
        "none"
        if s is None
        else f"{scale * s[0]:.{digits}f}{unit} [{scale * s[1]:.{digits}f}, {scale * s[2]:.{digits}f}]"
        for s in shares
    ]
    if len(shares) == 1:
        return cells
    one, other = shares
    return [*cells, "" if one is None or other is None else f"{scale * (other[0] - one[0]):+.{digits}f}{of_change}"]


def _metrics(means: list[float | None]) -> list[str]:
    return ["no submission" if mean is None else f"{mean:.2f}" for mean in means]
