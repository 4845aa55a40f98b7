"""Planted faults: once an episode is over, the guilty action has the lowest score, whoever scored it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from mappa.coach import RubricCoach
from mappa.coach.credit import retrospect
from mappa.coach.rubrics import load_rubric
from mappa.types import Verdict

from .planted import PLANTS, planted
from .scenarios import contexts

EPISODES = 400
RUBRIC = load_rubric("data-science")


def lowest(scores: list[float], guilty: int) -> bool:
    return all(score > scores[guilty] for place, score in enumerate(scores) if place != guilty)


def scores_of(verdicts: list[Verdict]) -> list[float]:
    return [verdict.score for verdict in verdicts if verdict.score is not None]


def test_the_guilty_action_gets_the_lowest_score_from_the_rubric() -> None:
    async def judged() -> Counter[str]:
        missed: Counter[str] = Counter()
        for seed in range(EPISODES):
            scenario, guilty = planted(seed)
            found = contexts(scenario)
            verdicts = [await RubricCoach().score(context) for context in found]
            if not lowest(scores_of(retrospect(found, verdicts, RUBRIC)), guilty):
                missed[scenario.name.rpartition(" ")[0]] += 1
        return missed

    missed = asyncio.run(judged())
    assert missed.total() <= 0.05 * EPISODES, missed


def test_and_from_a_coach_that_scores_what_it_sees_crash() -> None:
    """Every action that ran gets 6 to 9, every other one 0 to 4: blame starts at the victims."""
    missed: Counter[str] = Counter()
    for seed in range(EPISODES):
        scenario, guilty = planted(seed)
        rng, found = random.Random(seed), contexts(scenario)
        ran = [step.outcome == "ok" for step in scenario.steps]
        verdicts = [
            Verdict(score=rng.uniform(6, 9) if fine else rng.uniform(0, 4), reason="seen", coach="simulated")
            for fine in ran
        ]
        if not lowest(scores_of(retrospect(found, verdicts, RUBRIC)), guilty):
            missed[scenario.name.rpartition(" ")[0]] += 1
    assert missed.total() <= 0.05 * EPISODES, missed


def test_every_kind_of_fault_is_planted() -> None:
    kinds = {planted(seed)[0].name.rpartition(" ")[0] for seed in range(EPISODES)}
    assert len(kinds) == len(PLANTS)
