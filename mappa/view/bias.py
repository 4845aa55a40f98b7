"""Is one kind of task scored above another for the same work? By role, on actions whose measured outcome is equal."""

from __future__ import annotations

from collections import defaultdict
from statistics import NormalDist

from msgspec import Struct

from mappa.coach.matching import Gap, Scored, discoveries, matched_gap
from mappa.coach.monitor import RECENT
from mappa.view.catalogue import Catalogue

MOST = 600
"""Actions of a role and kind that are compared, the newest of a window."""
ALARM = 0.05
"""False-discovery rate of a board's alarms."""
_Z = NormalDist().inv_cdf(0.975)
_GROUPS = "select distinct role, kind from actions where phase='train' and step > ? and step <= ?"
_ROWS = """
select task, score, quality, success from actions indexed by actions_matched where phase='train' and role = ?
    and kind = ? and step > ? and step <= ? and score is not null and quality is not null order by step desc limit ?
"""


class Cell(Struct, frozen=True, kw_only=True):
    """Points by which a role's actions on one kind are scored above those on the other kinds; 95 % interval."""

    role: str
    kind: str
    size: float
    low: float
    high: float
    matched: int
    alarm: bool


class Board(Struct, frozen=True):
    """One window of steps, first to last. A role and kind without a cell has too few actions that match."""

    first: int
    last: int
    cells: list[Cell]


def bias_board(catalogue: Catalogue, last: int, steps: int = RECENT) -> Board:
    """The window of `steps` steps that ends with `last`."""
    first = max(0, last - steps)
    groups: dict[str, dict[str, list[Scored]]] = defaultdict(dict)
    for role, kind in catalogue.rows(_GROUPS, (first, last)):
        groups[role][kind] = [
            Scored(task=task, score=score, quality=quality, success=bool(success))
            for task, score, quality, success in catalogue.rows(_ROWS, (role, kind, first, last, MOST))
        ]
    gaps: dict[tuple[str, str], Gap] = {}
    for role, kinds in groups.items():
        for kind, rows in kinds.items():
            gap = matched_gap(rows, [row for other, more in kinds.items() if other != kind for row in more])
            if gap is not None:
                gaps[role, kind] = gap
    alarms = discoveries([gap.p for gap in gaps.values()], ALARM)
    cells = [
        Cell(
            role=role,
            kind=kind,
            size=gap.size,
            low=gap.size - _Z * gap.error,
            high=gap.size + _Z * gap.error,
            matched=gap.matched,
            alarm=place in alarms,
        )
        for place, ((role, kind), gap) in enumerate(gaps.items())
    ]
    return Board(first + 1, last, cells)
