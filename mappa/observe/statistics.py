"""Intervals for numbers measured on a few tasks, several episodes each.

Episodes of one task are alike, so they are not independent evidence: the tasks are what is resampled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist

RESAMPLES = 10_000


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
    draw = random.Random(seed)
    means = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(totals, k=len(totals))
        means.append(math.fsum(total for total, _ in chosen) / sum(count for _, count in chosen))
    means.sort()
    tail = (1 - confidence) / 2
    return means[math.floor(tail * (RESAMPLES - 1))], means[math.ceil((1 - tail) * (RESAMPLES - 1))]


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
