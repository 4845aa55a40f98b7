"""Comparing how two kinds of task are scored, on actions whose measured outcome is the same.

Kinds differ in difficulty, so their mean scores may differ without any bias. Actions are put into cells of equal
measured quality (ten, and apart by success); within cells a common slope takes out what quality still differs; what is
left of the difference is the coach's. Tasks are the unit of evidence: actions on one task are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mappa.types import Evidence

CELLS = 10
LEAST = 12
"""Matched actions of each kind below which nothing is said."""
RESAMPLES = 1000


class Gap(Struct, frozen=True, kw_only=True):
    """Points by which one kind is scored above the other on matched actions.

    >>> Gap(size=0.94, error=0.15, p=1e-8, matched=220)
    """

    size: float
    error: float
    """Standard error."""
    p: float
    """Probability of a gap this far from 0, either way, where there is none."""
    matched: int

    @property
    def shrunk(self) -> float:
        """The gap less what chance alone would make of it (positive-part James-Stein, for two standard errors)."""
        square = (self.size / self.error) ** 2 if self.error else math.inf
        return self.size * max(0.0, 1 - 2 / square) if square else 0.0


class Scored(Struct, frozen=True, kw_only=True):
    """What a comparison needs to know of one action."""

    task: str
    score: float
    quality: float
    """Measured, 0 to 1 (see `quality_of`)."""
    success: bool


def quality_of(evidence: Evidence) -> float:
    """How good the work is by the task's own checks, 0 to 1: the mean of its facts, a normalised score cut to 0..1."""
    values = [float(fact) for fact in evidence.facts.values() if isinstance(fact, bool)]
    normalised = evidence.facts.get("normalised")
    if isinstance(normalised, float):
        values.append(min(max(normalised, 0.0), 1.0))
    return sum(values) / len(values) if values else float(evidence.success)


def matched_gap(a: Sequence[Scored], b: Sequence[Scored]) -> Gap | None:
    """The gap of `a` over `b`; None where too few match."""
    design = _Design.of(a, b)
    return design.gap() if design is not None else None


def interval(
    a: Sequence[Scored], b: Sequence[Scored], *, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the matched gap, over tasks; (-inf, inf) where too few match."""
    design = _Design.of(a, b)
    if design is None:
        return -math.inf, math.inf
    rng = np.random.default_rng(seed)
    # Every task's weight is drawn, so that cells and their means are made anew with whole tasks in or out.
    sizes = design.sizes(_counts(rng, design.tasks_of(True)) + _counts(rng, design.tasks_of(False)))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(sizes, [tail, 1 - tail])
    return float(low), float(high)


class _Design:
    """Matched actions as arrays of length n: score, cell, side (is it of `a`), task."""

    def __init__(self, rows: Sequence[Scored], side: NDArray[np.bool_]) -> None:
        self.side = side
        quality = np.array([row.quality for row in rows])
        success = np.array([row.success for row in rows])
        self.cell = np.minimum((quality * CELLS).astype(int), CELLS - 1) + CELLS * success
        score = np.array([row.score for row in rows])
        names = {task: place for place, task in enumerate(dict.fromkeys(row.task for row in rows))}
        self.task = np.array([names[row.task] for row in rows])
        self.score = score - self._slope(score, quality) * (quality - _means(quality, self.cell)[self.cell])

    @classmethod
    def of(cls, a: Sequence[Scored], b: Sequence[Scored]) -> _Design | None:
        both = cls([*a, *b], np.arange(len(a) + len(b)) < len(a)) if a and b else None
        if both is None:
            return None
        shared = np.bincount(both.cell[both.side], minlength=2 * CELLS) * np.bincount(
            both.cell[~both.side], minlength=2 * CELLS
        )
        kept = [place for place in range(len(both.cell)) if shared[both.cell[place]]]
        side = both.side[kept]
        if side.sum() < LEAST or (~side).sum() < LEAST:
            return None
        rows = [*a, *b]
        return cls([rows[place] for place in kept], side)

    def gap(self) -> Gap:
        ones = np.ones((1, self.task.max() + 1))
        size = float(self.sizes(ones)[0])
        weights, n = self._weights(ones)
        groups = self.groups
        residual = self.score - _means(self.score, groups)[groups]
        cells = len(np.unique(groups))
        freedom = max(1, len(self.score) - cells - 1)
        # The coefficient of each action in the estimate; a cluster's sum of them times residuals is its pull.
        pull = np.where(self.side, 1.0, -1.0) * (weights / weights.sum())[0, self.cell] / n[0, groups]
        plain = float((pull**2).sum() * (residual**2).sum() / freedom)
        tasks = np.bincount(self.task, weights=pull * residual)
        count = len(tasks)
        clustered = float((tasks**2).sum()) * count / max(1, count - 1)
        error = math.sqrt(max(plain, clustered))
        p = t_tails(size / error, freedom if plain >= clustered else max(1, count - 2)) if error else float(size == 0)
        return Gap(size=size, error=error, p=p, matched=len(self.score))

    @property
    def groups(self) -> NDArray[np.int_]:
        """Cell and side as one number below 4 * CELLS."""
        found: NDArray[np.int_] = 2 * self.cell + self.side
        return found

    def sizes(self, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """The estimate under weights of tasks, one row of `draws` ([resamples, tasks]) each."""
        weights, n = self._weights(draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = draws @ self._by_task(self.score) / n
        differences = np.where(weights > 0, means[:, 1::2] - means[:, 0::2], 0.0)
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = (weights * differences).sum(1) / weights.sum(1)
        return found

    def _weights(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights of cells, n_a n_b / (n_a + n_b), and sizes of the groups (cell x side): [resamples, ...]."""
        n = draws @ self._by_task(np.ones(len(self.score)))
        left, right = n[:, 0::2], n[:, 1::2]
        return left * right / np.maximum(left + right, 1e-12), n

    def _by_task(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the actions of one task and group: [tasks, 4 * CELLS]."""
        found = np.zeros((self.task.max() + 1, 4 * CELLS))
        np.add.at(found, (self.task, self.groups), values)
        return found

    def tasks_of(self, side: bool) -> NDArray[np.float64]:
        """Which tasks are of one side, as 0 and 1."""
        found = np.zeros(self.task.max() + 1)
        found[self.task[self.side == side]] = 1.0
        return found

    def _slope(self, score: NDArray[np.float64], quality: NDArray[np.float64]) -> float:
        """Points per unit of quality within the groups."""
        groups = self.groups
        x, y = quality - _means(quality, groups)[groups], score - _means(score, groups)[groups]
        spread = float((x**2).sum())
        return float((x * y).sum()) / spread if spread > 1e-6 else 0.0


def t_tails(t: float, freedom: int) -> float:
    """Both tails of Student's t, by Wallace's approximation (right to four digits from three degrees on)."""
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return 2 * NormalDist().cdf(-z)


def discoveries(p_values: Sequence[float], level: float) -> list[int]:
    """Places of the p-values that Benjamini and Hochberg's rule calls discoveries at a false-discovery rate `level`."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    passed = [rank for rank, place in enumerate(order, start=1) if p_values[place] <= level * rank / len(order)]
    return sorted(order[: max(passed)]) if passed else []


def _means(values: NDArray[np.float64], groups: NDArray[np.int_]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.bincount(groups, weights=values) / np.maximum(np.bincount(groups), 1)
    return found


def _counts(rng: np.random.Generator, present: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often each task present is drawn, in RESAMPLES bootstraps."""
    total = int(present.sum())
    return rng.multinomial(total, present / total, size=RESAMPLES).astype(float)
