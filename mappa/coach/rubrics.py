"""Rubrics as data: what a score means, which caps the evidence sets, and the lines of the embedded coach.

Those that come with mappa lie in data/rubrics/; a path to a TOML file of the same form takes one's own. A rubric that
`extends` another has all that it does not say itself from that one.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mappa.errors import CoachError
from mappa.types import Evidence, Fact, Role

DATA = Path(__file__).parent / "data"
SHIPPED = ("data-science", "dsbench", "maths")


class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """Points for one fact: all or none for a truth, in proportion for a normalised score."""

    fact: str
    points: float

    def earned(self, value: Fact) -> float:
        if isinstance(value, bool):
            return self.points if value else 0.0
        return self.points * min(max(float(value), 0.0), 1.0) if isinstance(value, (int, float)) else 0.0


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The lines for one role, found by what it makes or by its name; with neither, those for any other role that makes
    no file."""

    lines: tuple[Line, ...]
    makes: str = ""
    roles: tuple[str, ...] = ()
    code: bool = True
    """It must write code."""


class Band(Struct, frozen=True, forbid_unknown_fields=True):
    """What a range of scores stands for, in words, for a coach that reads."""

    score: str
    text: str


class Caps(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The highest score that a fault leaves."""

    no_code: float
    invented: float
    guilty: float
    unusable: float
    crash: float
    undone: float
    victim: tuple[float, float]


class MetricCap(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The highest score by one measured metric: that of the first band it reaches."""

    fact: str
    bands: tuple[tuple[float, float], ...]
    otherwise: float
    greater_is_better: bool = True

    def cap(self, value: float) -> float:
        sign = 1 if self.greater_is_better else -1
        return next((cap for bound, cap in self.bands if sign * value >= sign * bound), self.otherwise)


class Rubric(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rubric. Its name and version stand in every verdict made by it."""

    name: str
    version: int
    about: str
    bands: tuple[Band, ...]
    caps: Caps
    parts: tuple[Part, ...]
    metrics: tuple[MetricCap, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def part(self, role: Role) -> Part | None:
        found = (part for part in self.parts if part.makes in role.produces or role.name in part.roles)
        return next(found, None)

    @property
    def general(self) -> Part | None:
        """That for any other role that makes no file."""
        return next((part for part in self.parts if not part.makes and not part.roles), None)

    def metric_cap(self, evidence: Evidence) -> float:
        """The lowest cap that a metric of the evidence sets; 10 where none is reported."""
        caps = [
            metric.cap(float(value))
            for metric in self.metrics
            if isinstance(value := evidence.facts.get(metric.fact), (int, float)) and not isinstance(value, bool)
        ]
        return min(caps, default=10.0)


@cache
def load_rubric(name: str) -> Rubric:
    """A rubric that comes with mappa, by name, or the one in the file at `name`. Raises CoachError naming the field
    that is missing or wrong."""
    path = _place(name)
    try:
        rubric = msgspec.convert(_read(path), Rubric)
    except msgspec.ValidationError as error:
        raise CoachError(f"rubric {path}: {error}") from None
    for part in rubric.parts:
        total = sum(line.points for line in part.lines)
        if abs(total - 10) > 1e-9:
            whose = part.makes or ", ".join(part.roles) or "any other role"
            raise CoachError(f"rubric {path}: the lines of {whose} add up to {total:g}; they must add up to 10")
    return rubric


def _place(name: str) -> Path:
    return DATA / "rubrics" / f"{name}.toml" if name in SHIPPED else Path(name)


def _read(path: Path) -> dict[str, Any]:
    """The file's content over that of the rubric it extends."""
    try:
        own = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise CoachError(f"no rubric at {path}; those that come with mappa are {', '.join(SHIPPED)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise CoachError(f"rubric {path} is not a TOML file: {error}") from None
    base = own.pop("extends", None)
    return own if base is None else _read(_place(base)) | own
