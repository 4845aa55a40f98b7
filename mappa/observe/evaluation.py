"""What an evaluation found, and how it is shown: the base and the trained team side by side."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct, field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Share = tuple[float, float, float]
"""A share between 0 and 1, and the low and high end of its interval."""


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
    repaired: int = 0
    """Actions that worked from reference artefacts. An evaluation repairs nothing, so anything but 0 is a fault."""


def evaluation_table(before: EvaluationResult, after: EvaluationResult | None = None) -> Table:
    """Pipeline, roles and metric of one result, or of two with the change between them."""
    how = f"{len(before.tasks)} held-out tasks, {before.episodes} {before.mode} episodes, no repairs, 95 % intervals"
    table = Table(title=how, title_justify="left", title_style="", box=SIMPLE_HEAD)
    table.add_column("success")
    for heading in ("base",) if after is None else ("base", "trained", "change"):
        table.add_column(heading, justify="right")
    for name, *cells in _rows(before, after):
        table.add_row(name, *cells, style="bold" if name == "pipeline" else "")
    return table


def evaluation_text(before: EvaluationResult, after: EvaluationResult | None = None) -> str:
    """The same table in plain characters, for logs and files."""
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as captured:
        console.print(evaluation_table(before, after))
    return captured.get()


def _rows(before: EvaluationResult, after: EvaluationResult | None) -> Iterator[list[str]]:
    results = [before] if after is None else [before, after]
    yield ["pipeline", *_shares([(result.success, *result.ci) for result in results])]
    for role in before.roles:
        yield [f"  {role}", *_shares([result.roles[role] for result in results])]
    yield ["metric: baseline 0, reference 1", *_metrics([result.metric_mean for result in results])]
    if any(result.lost for result in results):
        yield ["episodes lost, counted failed", *(str(result.lost) for result in results)]


def _shares(shares: list[Share]) -> list[str]:
    cells = [f"{100 * mean:.0f} % [{100 * low:.0f}, {100 * high:.0f}]" for mean, low, high in shares]
    return cells if len(shares) == 1 else [*cells, f"{100 * (shares[1][0] - shares[0][0]):+.0f} points"]


def _metrics(means: list[float | None]) -> list[str]:
    return ["no submission" if mean is None else f"{mean:.2f}" for mean in means]
