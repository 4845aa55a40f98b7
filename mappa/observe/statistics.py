"""Intervals for numbers measured on a few tasks, several episodes each.

Episodes of one task are alike, so they are not independent evidence: the tasks are what is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

import numpy as np

RESAMPLES = 10_000
EXACT_TASKS = 16


def bootstrap_interval(
    per_task: Sequence[Sequence[float]], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over tasks of the mean over all episodes.

    `per_task` holds one number per episode, grouped by task; tasks without an episode are left out. Equal tasks give an
    interval without width. Raises ValueError where there is no number at all.
    """
    totals = [(math.fsum(values), len(values)) for values in per_task if values]
    if not totals:
        raise ValueError("an interval needs at least one episode")
    sums, counts = np.array(totals, dtype=float).T
    if np.ptp(sums / counts) == 0:  # rounding in sums of equal numbers would give it a width
        return float(sums[0] / counts[0]), float(sums[0] / counts[0])
    drawn = np.random.default_rng(seed).multinomial(len(totals), [1 / len(totals)] * len(totals), size=RESAMPLES)
    return _ends(drawn @ sums / (drawn @ counts), confidence)


def paired_difference(
    before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float, float]:
    """(difference, low, high, p) of two measurements of the same tasks, in the same order.

    The mean over tasks of each task's own difference; its percentile bootstrap over tasks; and p of the two-sided
    sign-flip test, whose null is that before and after could change places within any task: exact up to 16 tasks, from
    random flips above. Raises ValueError for lists of different length or without a task.
    """
    pairs = [(fmean(one), fmean(other)) for one, other in zip(before, after, strict=True) if one and other]
    if not pairs:
        raise ValueError("a paired test needs at least one task that was measured twice")
    gaps = np.array([other - one for one, other in pairs])
    draw = np.random.default_rng(seed)
    resampled = gaps[draw.integers(len(gaps), size=(RESAMPLES, len(gaps)))].mean(axis=1)
    if len(gaps) <= EXACT_TASKS:
        signs = 1 - 2 * ((np.arange(2 ** len(gaps))[:, None] >> np.arange(len(gaps))) & 1)
    else:
        signs = np.vstack([np.ones(len(gaps)), draw.choice((-1, 1), size=(RESAMPLES, len(gaps)))])
    flipped = abs(signs @ gaps)
    seen = abs(gaps.sum())  # summed in another order it may come out a rounding smaller
    p = float((flipped >= seen - 1e-9 * abs(gaps).sum()).mean())
    return float(gaps.mean()), *_ends(resampled, confidence), p


def _ends(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The ends of the middle `confidence` of them."""
    ordered, tail = np.sort(values), (1 - confidence) / 2
    last = len(ordered) - 1
    return float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: right near 0 and 1 too. Raises ValueError without trials."""
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, square = successes / trials, z * z / trials
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    # At 0 and 1 the ends are exact; rounding would leave 1e-17 instead.
    return (max(0.0, centre - half) if successes else 0.0), (min(1.0, centre + half) if successes < trials else 1.0)


def success_interval(
    per_task: Sequence[Sequence[bool]], seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a success rate: the bootstrap over tasks, but never narrower than Wilson's over the episodes.

    The bootstrap alone would call 0 successes of 48 certain, as it would any rate that all tasks share.
    """
    low, high = bootstrap_interval(per_task, seed, confidence)
    episodes = [success for values in per_task for success in values]
    wilson_low, wilson_high = wilson_interval(sum(episodes), len(episodes), confidence)
    return min(low, wilson_low), max(high, wilson_high)
