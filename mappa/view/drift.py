"""Does the coach grow milder? Its frozen anchors scored again over the steps, and what the run found wrong with it."""

from __future__ import annotations

from statistics import fmean, stdev

import msgspec
from msgspec import Struct

from mappa.coach.matching import t_tails
from mappa.journal import read_reviews
from mappa.view.catalogue import Catalogue


class Change(Struct, frozen=True, array_like=True):
    """Points by which the coach scores its anchors above its first reading of them; 95 % interval over anchors."""

    step: int
    value: float
    low: float
    high: float


class Alarms(Struct, frozen=True):
    """What was wrong with the coach after a step."""

    step: int
    texts: list[str]


class Drifts(Struct, frozen=True):
    anchors: int
    """How many there are."""
    changes: list[Change]
    """From the second reading on."""
    alarms: list[Alarms]
    """Of every step that had one."""


class _Probed(Struct):
    anchors: dict[str, float] = {}


class _Kept(Struct):
    """What is needed here of a step's review."""

    probed: _Probed


class _Step(Struct):
    alarms: list[str] = []


_decode = msgspec.msgpack.Decoder(_Kept).decode


def drifts(catalogue: Catalogue) -> Drifts:
    """Over all steps of the run."""
    readings = [(step, _decode(row).probed.anchors) for step, row in read_reviews(catalogue.path).items()]
    read = [(step, anchors) for step, anchors in readings if anchors]
    first = read[0][1] if read else {}
    changes = [
        _change(step, [score - first[name] for name, score in anchors.items() if name in first])
        for step, anchors in read[1:]
    ]
    steps = catalogue.rows("select step, metrics from steps order by step")
    found = [Alarms(step, msgspec.json.decode(metrics, type=_Step).alarms) for step, metrics in steps]
    return Drifts(len(first), [change for change in changes if change], [one for one in found if one.texts])


def _change(step: int, differences: list[float]) -> Change | None:
    """None for fewer anchors than tell a spread."""
    n = len(differences)
    if n < 3:
        return None
    mean, half = fmean(differences), _critical(n - 1) * stdev(differences) / n**0.5
    return Change(step, mean, mean - half, mean + half)


def _critical(freedom: int) -> float:
    """Student's t beyond which both tails together have 5 %."""
    low, high = 1.9, 5.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > 0.05 else (low, middle)
    return high
