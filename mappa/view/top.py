"""`mappa top`: a run's numbers as a table in a terminal. Reads no action, so it is at once as fast on any journal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mappa.journal.schema import connect
from mappa.observe.metrics import RoleMetrics, StepMetrics
from mappa.observe.progress import duration, percent, trend
from mappa.observe.timeline import rollout_text
from mappa.view.overview import settings

STEPS = 8
"""Steps that the trend shows."""
EVERY = 2.0


def top(folder: Path, *, once: bool, console: Console | None = None) -> None:
    """Show the run until Ctrl-C, or once. Raises JournalError if there is none."""
    console = console or Console()
    if once:
        console.print(picture(folder))
        return
    try:
        with Live(picture(folder), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(EVERY)
                live.update(picture(folder), refresh=True)
    except KeyboardInterrupt:
        pass


def picture(folder: Path) -> RenderableType:
    """The run as it is now."""
    path = folder / "journal.sqlite"
    given = settings(path)
    with connect(path) as journal:
        steps = _steps(journal)
        states = dict(journal.execute("select state, count(*) from episodes group by state").fetchall())
        (calls, tokens, dollars) = journal.execute(
            "select count(*) filter (where length(data) > 0), total(tokens), total(dollars) from calls"
        ).fetchone()
    done = steps[-1].step if steps else 0
    head = [f"{given.name or folder.name}  step {done}/{given.steps}  seed {given.seed}"]
    head.append("  ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no episode yet")
    if tokens:
        head.append(f"coach: {calls} replies, {tokens:.0f} tokens, ${dollars:.2f}")
    parts: list[RenderableType] = [Text("\n".join(head))]
    if steps:
        parts += [_roles(steps), Text("\n".join(_last(steps[-1], given.steps)))]
    return Group(*parts)


def _steps(journal: sqlite3.Connection) -> list[StepMetrics]:
    rows = journal.execute(f"select metrics from steps order by step desc limit {STEPS}").fetchall()
    return [msgspec.json.decode(row[0], type=StepMetrics) for row in reversed(rows)]


def _roles(steps: list[StepMetrics]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # 80 columns wide
    table.add_column("role", no_wrap=True)
    table.add_column("scores", no_wrap=True)
    for heading in ("score", "success", "missing", "distinct", "tokens", "cut", "KL", "entropy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role, numbers in steps[-1].roles.items():
        scores = [step.roles[role].score if role in step.roles else None for step in steps]
        table.add_row(role, trend(scores), *_cells(numbers))
    return table


def _cells(numbers: RoleMetrics) -> Iterator[str]:
    yield "-" if numbers.score is None else f"{numbers.score:.1f}"
    yield percent(numbers.success)
    yield str(numbers.missing_scores)
    yield percent(numbers.distinct)
    yield "-" if numbers.tokens is None else f"{numbers.tokens:.0f}"
    yield percent(numbers.truncated)
    yield "-" if numbers.kl is None else f"{numbers.kl:.3f}"
    yield "-" if numbers.entropy is None else f"{numbers.entropy:.2f}"


def _last(step: StepMetrics, planned: int) -> Iterator[str]:
    left = max(0, planned - step.step) * step.seconds.total
    yield (
        f"team success {percent(step.success)}  {step.tokens_per_second:.0f} tok/s  {step.seconds.total:.0f} s a step"
        f"  {duration(left)} left" + (f"  {step.lost} lost" if step.lost else "")
    )
    if step.rollout is not None:
        yield rollout_text(step.rollout)
