"""Watches a coach over the steps of a run: is it biased, does it drift, can it be talked into something?

Per role and kind of task: mean, spread, share of missing scores, correlation with what was measured. Between kinds: the
gap on matched actions (matching.py). Over time: the same frozen anchors scored again, so that a coach that grows milder
can be told from a policy that improves. For single actions: the spread of a repeated score.

All tests of a step are judged together by Benjamini and Hochberg's rule. The k-th step may spend rate / (k (k + 1)) of
the run's rate of false alarms, so that however long a run is, the sum stays below the rate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from statistics import NormalDist, fmean, pstdev, stdev
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach.canary import Song
from mappa.coach.context import Standing
from mappa.coach.matching import Gap, Scored, discoveries, interval, matched_gap, quality_of, t_tails
from mappa.types import Episode

RECENT = 20
"""Steps that gaps, offsets and the coach's memory are taken from."""
EXPECTED_MISSING = 0.02
LEAST_CORRELATION = 0.2
ENOUGH = 24
"""Scores of a stratum below which their correlation is not tested."""

Strata = tuple[str, str]


class Reading(Struct, frozen=True, kw_only=True):
    """One scored action as the monitor keeps it."""

    step: int
    role: str
    kind: str
    task: str
    score: float | None
    quality: float
    success: bool
    fault: str | None = None


class Stratum(Struct, frozen=True, kw_only=True):
    """One role on one kind of task in one step. A number is None where there was too little to measure it on."""

    count: int
    mean: float | None = None
    spread: float | None = None
    missing: float = 0.0
    correlation: float | None = None


class Alarm(Struct, frozen=True, kw_only=True):
    """Something a person should look at.

    >>> Alarm(about="gap", where="modeler: regression over classification", size=0.94, p=1e-8, text="...")
    """

    about: Literal["gap", "drift", "missing", "blind", "canary"]
    where: str
    size: float
    p: float
    text: str


class Drift(Struct, frozen=True, kw_only=True):
    """How the coach reads its anchors now, against its first reading, and what that leaves of the policy's rise."""

    coach: float
    """Points; positive: it has grown milder."""
    error: float
    p: float
    policy: float | None
    """Rise of the mean score since the first step that the coach's drift does not explain."""


class Monitor:
    """Fed once per step with its episodes; asked for numbers, alarms, offsets and the coach's memory."""

    def __init__(self, alarm_rate: float = 0.05) -> None:
        self._rate = alarm_rate
        self._looks = 0
        self._recent: deque[list[Reading]] = deque(maxlen=RECENT)
        self._first_mean: float | None = None
        self._anchors: dict[str, float] = {}
        self._drift: Drift | None = None
        self._songs: list[Song] = []
        self._repeats: deque[float] = deque(maxlen=1000)

    def observe(self, readings: Sequence[Reading]) -> list[Alarm]:
        """Take in one step, and say what is wrong as of now."""
        self._recent.append(list(readings))
        if self._first_mean is None:
            self._first_mean = _mean(r.score for r in readings)
        self._looks += 1
        level = self._rate / (self._looks * (self._looks + 1))
        tests = [*self._gap_tests(), *self._stratum_tests(), *self._drift_tests()]
        found = [tests[place] for place in discoveries([test.p for test in tests], level)]
        return [*(self._with_interval(alarm) for alarm in found), *self._canary_alarms()]

    def strata(self) -> dict[Strata, Stratum]:
        """The last step, by role and kind."""
        groups: dict[Strata, list[Reading]] = defaultdict(list)
        for reading in self._recent[-1] if self._recent else ():
            groups[reading.role, reading.kind].append(reading)
        return {place: _stratum(readings) for place, readings in sorted(groups.items())}

    def gaps(self) -> dict[tuple[str, str, str], Gap]:
        """Gaps of the last steps by (role, kind, other kind): points that the first is scored above the second."""
        found = {}
        for role, kinds in self._by_role().items():
            for kind, other in combinations(sorted(kinds), 2):
                gap = matched_gap(kinds[kind], kinds[other])
                if gap is not None:
                    found[role, kind, other] = gap
        return found

    def offsets(self) -> dict[Strata, float]:
        """Points to take off each stratum's scores so that equal outcomes get equal scores, estimated on matched
        actions alone and shrunk: where there is no bias to be seen they are 0, or nearly."""
        found = {}
        for role, kinds in self._by_role().items():
            total = sum(map(len, kinds.values()))
            for kind, rows in kinds.items():
                others = [row for other, more in kinds.items() if other != kind for row in more]
                gap = matched_gap(rows, others)
                if gap is not None:  # the mean over all of the role's actions stays where it was
                    found[role, kind] = gap.shrunk * (1 - len(rows) / total)
        return found

    def sing(self, songs: Sequence[Song]) -> None:
        """What became of the canaries this step."""
        self._songs = list(songs)

    def repeated(self, first: float, second: float) -> None:
        """Two readings of one action by the same coach."""
        self._repeats.append(first - second)

    @property
    def repeat_spread(self) -> float | None:
        """Standard deviation of a single score about the coach's own mean for that action."""
        return math.sqrt(fmean(d * d for d in self._repeats) / 2) if self._repeats else None

    def anchor(self, scores: Mapping[str, float]) -> Drift | None:
        """Scores of the anchors by name: the first call freezes them, later ones are compared with it."""
        if not self._anchors:
            self._anchors = dict(scores)
            return None
        changes = [score - self._anchors[name] for name, score in scores.items() if name in self._anchors]
        if len(changes) < 3:
            return None
        coach, spread = fmean(changes), stdev(changes)
        error = spread / math.sqrt(len(changes))
        p = t_tails(coach / error, len(changes) - 1) if error else float(coach == 0)
        now = _mean(r.score for r in self._recent[-1]) if self._recent else None
        rise = now - self._first_mean if now is not None and self._first_mean is not None else None
        self._drift = Drift(coach=coach, error=error, p=p, policy=None if rise is None else rise - coach)
        return self._drift

    def standings(self) -> dict[Strata, Standing]:
        """The coach's record as of now, by role and kind: what one with a memory is shown of its own scoring."""
        gaps = self.gaps()
        found = {}
        for (role, kind), readings in self._strata().items():
            scores = [r.score for r in readings if r.score is not None]
            if scores:
                mine = {b: gap.size for (r, a, b), gap in gaps.items() if (r, a) == (role, kind)}
                mine |= {a: -gap.size for (r, a, b), gap in gaps.items() if (r, b) == (role, kind)}
                found[role, kind] = Standing(
                    count=len(scores),
                    mean=fmean(scores),
                    spread=pstdev(scores),
                    gaps=mine,
                    drift=self._drift.coach if self._drift is not None else None,
                    faults=dict(Counter(r.fault for r in readings if r.fault).most_common(5)),
                )
        return found

    def metrics(self) -> dict[str, float]:
        """Numbers of the last step under flat names, for metrics.jsonl and the scalars."""
        found: dict[str, float] = {}
        for (role, kind), stratum in self.strata().items():
            for name in ("mean", "spread", "missing", "correlation"):
                value = getattr(stratum, name)
                if value is not None:
                    found[f"{role}/{kind}/{name}"] = value
        for (role, kind, other), gap in self.gaps().items():
            found[f"{role}/gap {kind} over {other}"] = gap.size
        if self._drift is not None:
            found["drift"] = self._drift.coach
        if self.repeat_spread is not None:
            found["repeat spread"] = self.repeat_spread
        return found

    def _by_role(self) -> dict[str, dict[str, list[Scored]]]:
        found: dict[str, dict[str, list[Scored]]] = defaultdict(lambda: defaultdict(list))
        for readings in self._recent:
            for r in readings:
                if r.score is not None:
                    scored = Scored(task=r.task, score=r.score, quality=r.quality, success=r.success)
                    found[r.role][r.kind].append(scored)
        return found

    def _strata(self) -> dict[Strata, list[Reading]]:
        """Readings of the last steps by role and kind."""
        groups: dict[Strata, list[Reading]] = defaultdict(list)
        for reading in chain.from_iterable(self._recent):
            groups[reading.role, reading.kind].append(reading)
        return groups

    def _gap_tests(self) -> Iterable[Alarm]:
        for (role, kind, other), gap in self.gaps().items():
            text = (
                f"{role}: {kind} is scored {gap.size:+.2f} points against {other} on {gap.matched} actions of equal "
                "outcome; coach.correct='offset' takes that off, learn.group_by='role-kind' normalises each kind alone"
            )
            yield Alarm(about="gap", where=f"{role}: {kind} over {other}", size=gap.size, p=gap.p, text=text)

    def _with_interval(self, alarm: Alarm) -> Alarm:
        """A gap that was found, with its bootstrap interval: it costs too much to have for every gap and step."""
        if alarm.about != "gap":
            return alarm
        role, _, kinds = alarm.where.partition(": ")
        kind, _, other = kinds.partition(" over ")
        rows = self._by_role()[role]
        low, high = interval(rows[kind], rows[other])
        return replace(alarm, text=f"{alarm.text} (95 % interval {low:+.2f} to {high:+.2f})")

    def _stratum_tests(self) -> Iterable[Alarm]:
        for (role, kind), stratum in self.strata().items():
            where = f"{role} on {kind}"
            missing = round(stratum.missing * stratum.count)
            p = _binomial_tail(missing, stratum.count, EXPECTED_MISSING)
            text = f"{where}: {stratum.missing:.0%} of {stratum.count} scores are missing"
            yield Alarm(about="missing", where=where, size=stratum.missing, p=p, text=text)
        for (role, kind), readings in self._strata().items():
            where = f"{role} on {kind}"
            pairs = [(r.score, r.quality) for r in readings if r.score is not None]
            found = _correlation(pairs)
            if found is not None and len(pairs) >= ENOUGH:
                z = (math.atanh(found) - math.atanh(LEAST_CORRELATION)) * math.sqrt(len(pairs) - 3)
                text = f"{where}: scores hardly follow what was measured (correlation {found:.2f})"
                yield Alarm(about="blind", where=where, size=found, p=NormalDist().cdf(z), text=text)

    def _drift_tests(self) -> Iterable[Alarm]:
        if self._drift is not None:
            text = (
                f"the coach reads its {len(self._anchors)} anchors {self._drift.coach:+.2f} points against its first "
                f"reading; of the scores' rise {self._drift.policy or 0.0:+.2f} points are the policy's"
            )
            yield Alarm(about="drift", where="anchors", size=self._drift.coach, p=self._drift.p, text=text)

    def _canary_alarms(self) -> list[Alarm]:
        fooled = [song for song in self._songs if song.fooled]
        self._songs = []
        return [
            Alarm(
                about="canary",
                where=song.canary,
                size=song.raw or 0.0,
                p=0.0,
                text=f"the coach gave {song.raw:g} points to a canary ({song.canary}); the reward got {song.score}",
            )
            for song in fooled
        ]


def readings_of(step: int, episodes: Iterable[Episode]) -> list[Reading]:
    """One reading per measured action of every episode that was not lost."""
    return [
        Reading(
            step=step,
            role=action.role,
            kind=episode.kind,
            task=episode.task,
            score=action.verdict.score if action.verdict is not None else None,
            quality=quality_of(action.evidence),
            success=action.evidence.success,
            fault=action.evidence.fault,
        )
        for episode in episodes
        if episode.error is None
        for action in episode.actions
        if action.evidence is not None
    ]


def _stratum(readings: Sequence[Reading]) -> Stratum:
    pairs = [(r.score, r.quality) for r in readings if r.score is not None]
    scores = [score for score, _ in pairs]
    return Stratum(
        count=len(readings),
        mean=fmean(scores) if scores else None,
        spread=stdev(scores) if len(scores) > 1 else None,
        missing=1 - len(scores) / len(readings),
        correlation=_correlation(pairs),
    )


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3:
        return None
    mx, my = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    xx, yy = sum((x - mx) ** 2 for x, _ in pairs), sum((y - my) ** 2 for _, y in pairs)
    if min(xx, yy) < 1e-9:
        return None
    found = sum((x - mx) * (y - my) for x, y in pairs) / math.sqrt(xx * yy)
    return max(-0.999, min(0.999, found))


def _binomial_tail(count: int, n: int, share: float) -> float:
    """Probability of `count` or more of `n`, 0 < share < 1.

    In logs, since comb(n, k) is beyond a float from n = 1030 on; and over the tail itself, so that a small one is no
    difference of two numbers near 1.
    """
    success, failure = math.log(share), math.log1p(-share)
    ways = math.lgamma(n + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(ways - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * success + (n - k) * failure)
            for k in range(count, n + 1)
        ),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None
