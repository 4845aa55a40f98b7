"""Ten episodes with a fault in them: whom the rubric coach blames, at once and in retrospect, exactly."""

from __future__ import annotations

import asyncio

import pytest

from mappa.coach import RubricCoach
from mappa.coach.credit import retrospect
from mappa.coach.rubrics import load_rubric

from .scenarios import SCENARIOS, Scenario, contexts


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_blame_goes_where_it_belongs(scenario: Scenario) -> None:
    async def judged() -> list:
        coach = RubricCoach((scenario.rubric, "maths"))
        return [await coach.score(context) for context in contexts(scenario)]

    verdicts = asyncio.run(judged())
    assert [v.score for v in verdicts] == [step.at_once for step in scenario.steps], [v.reason for v in verdicts]
    found = retrospect(contexts(scenario), verdicts, load_rubric(scenario.rubric))
    assert [v.score for v in found] == [step.in_the_end for step in scenario.steps], [v.reason for v in found]
    assert found == retrospect(contexts(scenario), verdicts, load_rubric(scenario.rubric))
