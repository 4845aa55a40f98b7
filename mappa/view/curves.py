"""Per step, role and kind of task: what was scored, measured and spent, with intervals.

Actions on one task are alike, so the 95 % interval of a mean is that of its cluster-robust standard error over tasks; a
share's is never narrower than Wilson's, that of distinct actions is the jackknife's. KL and entropy are means over
tokens, from what the learner made of each action. What it and the coach report only per step has no interval.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

import msgspec
from msgspec import Struct

from mappa.observe.metrics import StepMetrics
from mappa.observe.statistics import wilson_interval
from mappa.view.catalogue import Catalogue

LEARNED = ("kl", "entropy", "clip_fraction", "ratio", "advantage_std", "grad_norm", "loss")
"""Of a role's metrics, as the learner reported them."""
SHARES = ("success", "truncated", "tool_errors", "missing")
_Z = 1.96
_NAMES = ("score", "success", "tokens", "truncated", "tool_errors", "missing")
_MEANS = """
select role, kind, count(score), sum(score) / 10, count(success), sum(success), count(*), sum(tokens),
    count(*), sum(truncated), sum(tool), sum(tool_error), count(*), count(missing)
from actions where phase='train' and step = ? group by role, kind, task
"""
_TEAM = (
    "select count(*), total(success) from episodes where phase='train' and step = ? and state = 'done' group by task"
)
_LEARNED_MEANS = """
select a.role, a.kind, total(l.tokens) filter (where l.kl is not null), total(l.kl * l.tokens),
    total(l.tokens) filter (where l.entropy is not null), total(l.entropy * l.tokens)
from actions a cross join learned l on l.source = a.episode || '/' || a.role || '/' || a.turn
where a.phase='train' and a.step = ? group by a.role, a.kind, a.task
"""
_DIGESTS = "select role, kind, task, digest from actions where phase='train' and step = ?"
_CALLS = """
select coalesce(sum(replies), 0), total(tokens), total(dollars) from calls where
    time > (select coalesce(max(time), 0) from steps where step < :step) and
    time <= (select time from steps where step = :step)
"""

Key = tuple[str, str, str]
"""Measure, role, kind."""


class Point(Struct, frozen=True, array_like=True):
    """A number at a step; without an interval both ends are None."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


class Curve(Struct, frozen=True):
    """One measure over the steps. `role` is empty for the team, `kind` for all kinds together.

    >>> Curve("score", "modeler", "regression", [Point(1, 0.42, 0.31, 0.53)])
    """

    measure: str
    role: str
    kind: str
    points: list[Point]


class Curves:
    """Keeps every step's numbers, and works out again only those of steps of which something was read since."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._steps: dict[int, list[tuple[Key, Point]]] = {}
        self._seen = -1

    def update(self) -> None:
        """Take in what the catalogue has read. For one thread at a time."""
        now = self._catalogue.changes
        for step in [step for step, change in self._catalogue.touched.items() if change > self._seen]:
            found = dict(_reported(self._catalogue, step))
            found |= dict(_learned(self._catalogue, step))  # with intervals, in the place of those without
            found |= dict(_measured(self._catalogue, step))
            found |= dict(_distinct(self._catalogue, step))
            found |= dict(_coach(self._catalogue, step))
            self._steps[step] = list(found.items())
        self._seen = now

    def since(self, step: int = 0) -> list[Curve]:
        """Every curve from the step after `step` on. The score is a tenth of the coach's: 0 to 1, as the outcome."""
        found: dict[Key, list[Point]] = defaultdict(list)
        for number in sorted(self._steps):
            if number > step:
                for key, point in self._steps[number]:
                    found[key].append(point)
        return [Curve(*key, points) for key, points in sorted(found.items())]


def mean_interval(groups: Sequence[tuple[float, float]], *, share: bool) -> tuple[float, float, float]:
    """(mean, low, high) from each task's (count, sum), counts above 0.

    One task alone says nothing of others: its interval is Wilson's where it is a share, else it has no width.
    """
    n = sum(count for count, _ in groups)
    mean = sum(total for _, total in groups) / n
    squares = sum((total - count * mean) ** 2 for count, total in groups)
    half = _Z * math.sqrt(squares * len(groups) / max(1, len(groups) - 1)) / n
    low, high = mean - half, mean + half
    if share:
        least, most = wilson_interval(round(mean * n), round(n))
        low, high = max(0.0, min(low, least)), min(1.0, max(high, most))
    return mean, low, high


def distinct_interval(tasks: Sequence[Sequence[int]]) -> tuple[float, float, float]:
    """(share, low, high) of different actions among all, from each task's digests: the error is the jackknife's that
    leaves out one task after the other. One task alone says nothing of others: no width."""
    holders: Counter[int] = Counter(digest for task in tasks for digest in set(task))
    n, k = sum(map(len, tasks)), len(tasks)
    share = len(holders) / n
    if k < 2:
        return share, share, share
    own = [sum(holders[digest] == 1 for digest in set(task)) for task in tasks]
    without = [(len(holders) - mine) / (n - len(task)) for task, mine in zip(tasks, own, strict=True)]
    mean = sum(without) / k
    half = _Z * math.sqrt((k - 1) / k * sum((value - mean) ** 2 for value in without))
    return share, max(0.0, share - half), min(1.0, share + half)


def _measured(catalogue: Catalogue, step: int) -> Iterator[tuple[Key, Point]]:
    cells: dict[Key, list[tuple[int, float]]] = defaultdict(list)
    for role, kind, *numbers in catalogue.rows(_MEANS, (step,)):
        for name, count, total in zip(_NAMES, numbers[::2], numbers[1::2], strict=True):
            if count:
                cells[name, role, kind].append((count, total or 0.0))
                cells[name, role, ""].append((count, total or 0.0))
    if team := [(count, total) for count, total in catalogue.rows(_TEAM, (step,)) if count]:
        cells["success", "", ""] = team
    for key, groups in cells.items():
        yield key, Point(step, *mean_interval(groups, share=key[0] in SHARES))


def _distinct(catalogue: Catalogue, step: int) -> Iterator[tuple[Key, Point]]:
    cells: dict[Key, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for role, kind, task, digest in catalogue.rows(_DIGESTS, (step,)):
        cells["distinct", role, kind][task].append(digest)
        cells["distinct", role, ""][task].append(digest)
    for key, tasks in cells.items():
        yield key, Point(step, *distinct_interval(list(tasks.values())))


def _learned(catalogue: Catalogue, step: int) -> Iterator[tuple[Key, Point]]:
    """KL to the base and entropy, nats per token."""
    cells: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for role, kind, *numbers in catalogue.rows(_LEARNED_MEANS, (step,)):
        for name, count, total in zip(("kl", "entropy"), numbers[::2], numbers[1::2], strict=True):
            if count:
                cells[name, role, kind].append((count, total))
                cells[name, role, ""].append((count, total))
    for key, groups in cells.items():
        yield key, Point(step, *mean_interval(groups, share=False))


def _reported(catalogue: Catalogue, step: int) -> Iterator[tuple[Key, Point]]:
    """What the step's metrics say of learner and clock."""
    for (text,) in catalogue.rows("select metrics from steps where step = ?", (step,)):
        metrics = msgspec.json.decode(text, type=StepMetrics)
        yield ("seconds", "", ""), Point(step, metrics.seconds.total)
        for role, numbers in metrics.roles.items():
            for name in LEARNED:
                if (value := getattr(numbers, name)) is not None:
                    yield (name, role, ""), Point(step, value)


def _coach(catalogue: Catalogue, step: int) -> Iterator[tuple[Key, Point]]:
    """How long scores took, what was bought between the ends of two steps, and how many came without a purchase."""
    waits = catalogue.rows("select ended - began from spans where kind='coach' and step = ? order by 1", (step,))
    seconds = [row[0] for row in waits]
    if seconds:
        slow = seconds[int(0.95 * (len(seconds) - 1))]
        yield ("coach_seconds", "", ""), Point(step, median(seconds), seconds[0], slow)
    for calls, tokens, dollars in catalogue.rows(_CALLS, {"step": step}):
        if tokens:
            yield ("coach_calls", "", ""), Point(step, calls)
            yield ("coach_tokens", "", ""), Point(step, tokens)
            yield ("coach_dollars", "", ""), Point(step, dollars)
            if seconds:
                yield ("coach_hits", "", ""), Point(step, max(0.0, 1 - calls / len(seconds)))
