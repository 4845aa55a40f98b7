"""What a run shows while it runs: a live display on a terminal, plain lines where there is none.

with Progress(config.steps, roles, plain=None, done=resumed) as progress:
    progress.phase("rollout", total=18)
    progress.advance()                    # once per finished episode
    progress.step_done(metrics)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mappa.observe.metrics import RoleMetrics, StepMetrics
from mappa.observe.timeline import rollout_text

RECENT_STEPS = 5
"""Steps whose mean duration gives the ETA."""
QUIET_SECONDS = 30.0
"""A phase that lasts longer says so in plain lines too, this often."""
_BLOCKS = "▁▂▃▄▅▆▇█"


class Progress:
    """Shows phases and steps. A context manager; its methods may be called from any one thread.

    `plain=None` shows plain lines when the output is not a terminal. `done` is the number of steps that an earlier,
    interrupted run already took.
    """

    def __init__(
        self,
        total_steps: int,
        roles: Sequence[str],
        plain: bool | None = None,
        *,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._plain = not self._console.is_terminal if plain is None else plain
        self._clock = clock
        self._total, self._done, self._roles = total_steps, done, tuple(roles)
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)
        self._scores: dict[str, list[float | None]] = {role: [] for role in roles}
        self._last: StepMetrics | None = None
        self._phase, self._phase_total, self._phase_done = "starting", 0, 0
        self._phase_start = self._said = clock()
        self._live = Live(console=self._console, get_renderable=self._display, refresh_per_second=2)

    def __enter__(self) -> Progress:
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._plain:
            self._live.stop()

    def phase(self, name: str, total: int = 0) -> None:
        """What happens from now on, and how many pieces it has (0: unknown)."""
        self._phase, self._phase_total, self._phase_done = name, total, 0
        self._phase_start = self._said = self._clock()

    def advance(self, n: int = 1) -> None:
        """`n` more pieces of the phase are done."""
        self._phase_done += n
        now = self._clock()
        if self._plain and now - self._said >= QUIET_SECONDS:
            self._said = now
            self.note(f"{self._phase_text()}, {duration(now - self._phase_start)}")

    def step_done(self, metrics: StepMetrics) -> None:
        """A step is complete: its numbers are shown and the ETA follows."""
        self._durations.append(metrics.seconds.total)
        self._done += 1
        self._last = metrics
        for role, scores in self._scores.items():
            scores.append(metrics.roles[role].score if role in metrics.roles else None)
        if self._plain:
            self._said = self._clock()
            self.note(self._step_text(metrics))
            if metrics.rollout is not None:
                self.note(f"  {rollout_text(metrics.rollout)}")

    def note(self, text: str) -> None:
        """A line that stays on the screen: a warning, a file that was written."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def eta(self) -> float | None:
        """Seconds until the last step is done, None before the first one of this process is."""
        if not self._durations:
            return None
        return (self._total - self._done) * sum(self._durations) / len(self._durations)

    def _step_text(self, metrics: StepMetrics) -> str:
        parts = [f"step {self._done}/{self._total}", f"success {percent(metrics.success)}"]
        for role, numbers in metrics.roles.items():
            parts.append(f"{role} {_number(numbers.score, '.1f')} ({percent(numbers.success)})")
        parts += [f"{metrics.tokens_per_second:.0f} tok/s", f"{metrics.seconds.total:.0f} s"]
        if metrics.lost:
            parts.append(f"{metrics.lost} of {metrics.episodes} episodes lost")
        remaining = self.eta()
        if remaining is not None:
            parts.append(f"ETA {duration(remaining)}")
        return " | ".join(parts)

    def _phase_text(self) -> str:
        return f"{self._phase} {self._phase_done}/{self._phase_total}" if self._phase_total else self._phase

    def _display(self) -> Group:
        last = self._last
        return Group(self._bars(), self._role_table(last), self._footer(last)) if last else Group(self._bars())

    def _bars(self) -> Table:
        remaining = self.eta()
        bars = Table.grid(padding=(0, 2))
        bars.add_row(
            Text("steps", style="bold"),
            ProgressBar(total=self._total, completed=self._done, width=40),
            f"{self._done}/{self._total}",
            "" if remaining is None else f"ETA {duration(remaining)}",
        )
        bars.add_row(
            self._phase,
            ProgressBar(total=self._phase_total or None, completed=self._phase_done, width=40),
            f"{self._phase_done}/{self._phase_total}" if self._phase_total else "",
            duration(self._clock() - self._phase_start),
        )
        return bars

    def _role_table(self, metrics: StepMetrics) -> Table:
        table = Table(box=None, padding=(0, 2), pad_edge=False)
        table.add_column("role")
        table.add_column("score over steps", no_wrap=True)
        for heading in ("score", "success", "distinct", "tokens", "KL", "clipped"):
            table.add_column(heading, justify="right")
        for role in self._roles:
            numbers = metrics.roles.get(role, RoleMetrics(actions=0))
            table.add_row(
                role,
                Text(trend(self._scores[role][-20:]), style="cyan"),
                _number(numbers.score, ".1f"),
                percent(numbers.success),
                percent(numbers.distinct),
                _number(numbers.tokens, ".0f"),
                _number(numbers.kl, ".3f"),
                percent(numbers.clip_fraction),
            )
        return table

    def _footer(self, metrics: StepMetrics) -> Text:
        seconds = metrics.seconds
        spent = "  ".join(f"{name} {getattr(seconds, name):.0f} s" for name in seconds.__struct_fields__)
        lost = f"  {metrics.lost} lost" if metrics.lost else ""
        rollout = f"\n{rollout_text(metrics.rollout)}" if metrics.rollout is not None else ""
        return Text.assemble(
            (f"pipeline success {percent(metrics.success)}", "bold"),
            f"  {metrics.episodes} episodes{lost}  {metrics.tokens_per_second:.0f} tok/s  "
            f"{metrics.peak_memory_gb:.1f} GB\n",
            (spent + rollout, "dim"),
        )


def trend(scores: Sequence[float | None]) -> str:
    """Scores from 0 to 10 as a row of blocks; a step without a score is a gap. `trend([0, 5, 10]) == "▁▅█"`"""
    return "".join(" " if score is None else _BLOCKS[round(score / 10 * 7)] for score in scores)


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `1 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
