"""Who was at work when: serving, tools, coach, learner and publishes over the time of one step."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from msgspec import Struct

from mappa.observe.timeline import Interval, merge, total
from mappa.view.catalogue import Catalogue

LANES = ("queue", "generate", "outside", "tool", "coach", "learn", "publish")
BINS = 240
LONGEST = 3600.0
"""Seconds after the window's end in which what began in it is looked for."""


class Lane(Struct, frozen=True, kw_only=True):
    kind: str
    busy: float
    """Share of the window in which at least one was at work."""
    most: float
    load: list[float]
    """How many were at work on average, in each of BINS equal parts of the window."""


class Lanes(Struct, frozen=True):
    """One step: from its first generation to that of the next step, or to the last thing that happened. Where the
    next step's was no later, as its episodes were begun ahead, to the last thing of its own."""

    step: int
    began: float
    ended: float
    lanes: list[Lane]


def lanes(catalogue: Catalogue, step: int) -> Lanes:
    began, ended = _window(catalogue, step)
    spans: dict[str, list[Interval]] = defaultdict(list)
    rows = catalogue.rows(
        "select kind, max(began, :began), min(ended, :ended) from spans "
        "where ended > :began and ended < :ended + :longest and began < :ended",
        {"began": began, "ended": ended, "longest": LONGEST},
    )
    for kind, *interval in rows:
        spans[kind].append((interval[0], interval[1]))
    shown = [kind for kind in LANES if spans[kind]] if ended > began else []
    return Lanes(step, began, ended, [_lane(kind, spans[kind], began, ended) for kind in shown])


def _window(catalogue: Catalogue, step: int) -> Interval:
    first = "select min(began) from spans where kind='generate' and step=?"
    began, after = (catalogue.rows(first, (number,))[0][0] for number in (step, step + 1))
    if began is None:
        return 0.0, 0.0
    if after is None:
        after = catalogue.rows("select max(ended) from spans")[0][0]
    elif after <= began:
        after = catalogue.rows("select max(ended) from spans where step=?", (step,))[0][0]
    return began, max(after, began)


def _lane(kind: str, spans: list[Interval], began: float, ended: float) -> Lane:
    starts, ends = np.array(spans).T
    edges = np.linspace(began, ended, BINS + 1)
    worked = np.clip(edges[:, None] - starts, 0, ends - starts).sum(1)  # seconds of work up to each edge
    load = np.diff(worked) / ((ended - began) / BINS)
    return Lane(
        kind=kind,
        busy=total(merge(spans)) / (ended - began),
        most=float(load.max()),
        load=[round(float(value), 3) for value in load],
    )
