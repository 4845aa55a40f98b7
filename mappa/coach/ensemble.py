"""Several coaches for one action: the mean of those that agree, and nothing where too few do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean, median

from mappa.coach.canary import own_score
from mappa.coach.context import ActionContext, Coach
from mappa.errors import CoachError
from mappa.types import Fact, Missing, Verdict


class EnsembleCoach:
    """Implements `Coach`. Members agree whose scores lie within `agreement` points of the median; the score is their
    mean, and it is missing where they are less than `quorum` of all members: one that gave no score does not agree."""

    def __init__(self, members: Sequence[Coach], *, agreement: float = 2.0, quorum: float = 0.5) -> None:
        if not members:
            raise CoachError("an ensemble has no members; name endpoints in [coach.member.NAME]")
        self._members, self._agreement, self._quorum = tuple(members), agreement, quorum
        self.name = f"ensemble({', '.join(member.name for member in members)})"

    @property
    def stopped(self) -> str | None:
        return next((member.stopped for member in self._members if member.stopped), None)

    async def score(self, context: ActionContext) -> Verdict:
        verdicts = await asyncio.gather(*(member.score(context) for member in self._members))
        given = [v.score for v in verdicts if v.score is not None]
        facts: dict[str, Fact] = {f"score {v.coach}": v.score for v in verdicts}
        if spent := [v for v in verdicts if v.missing == "budget"]:  # the others would go on with fewer eyes
            return Verdict(evidence=facts, reason=spent[0].reason, score=None, coach=self.name, missing="budget")
        own = [raw for v in verdicts if (raw := own_score(v)) is not None]
        facts["raw"] = max(own, default=None)  # one member that can be fooled is one too many
        if not given:
            first = verdicts[0]
            return Verdict(
                evidence=facts, reason=first.reason, score=None, coach=self.name, missing=first.missing or "unmeasured"
            )
        middle = median(given)
        agreed = [score for score in given if abs(score - middle) <= self._agreement]
        share = len(agreed) / len(verdicts)
        facts |= {"agreement": share, "spread": max(given) - min(given)}
        if share < self._quorum or not agreed:
            return self._too_few(verdicts, len(agreed), given, facts)
        nearest = min((v for v in verdicts if v.score is not None), key=lambda v: abs((v.score or 0) - middle))
        return Verdict(evidence=facts, reason=nearest.reason, score=round(fmean(agreed), 2), coach=self.name)

    def _too_few(
        self, verdicts: Sequence[Verdict], agreed: int, given: Sequence[float], facts: dict[str, Fact]
    ) -> Verdict:
        """No score. Where those that gave one agree, the reason is why the others gave none."""
        silent = [v for v in verdicts if v.score is None]
        listed = ", ".join(f"{score:g}" for score in sorted(given))
        reason = f"the members disagree: {listed}"
        missing: Missing = "disagreement"
        if silent and agreed == len(given):
            reason = f"{len(silent)} of {len(verdicts)} members gave no score; one of them: {silent[0].reason}"
            missing = silent[0].missing or "unmeasured"
        return Verdict(evidence=facts, reason=reason, score=None, coach=self.name, missing=missing)

    @property
    def members(self) -> tuple[Coach, ...]:
        return self._members

    async def close(self) -> None:
        for member in self._members:
            await member.close()
