"""The scale of scores, and when an episode is a success."""

from __future__ import annotations

import pytest

from mappa.tasks import normalised, outcome
from mappa.tasks.metrics import beats_baseline
from mappa.types import Action, Evidence, Fact, Metric, Outcome, Task

RMSE = Metric(name="rmse", greater_is_better=False, baseline=10.0, reference=4.0)
ACCURACY = Metric(name="accuracy", greater_is_better=True, baseline=0.6, reference=0.9)
TASK = Task(id="Boston", kind="regression", prompt="", target="medv", metric=RMSE)


@pytest.mark.parametrize(
    ("metric", "score", "expected"),
    [
        (RMSE, 10.0, 0.0),
        (RMSE, 4.0, 1.0),
        (RMSE, 7.0, 0.5),
        (RMSE, 1.0, 1.5),
        (RMSE, 13.0, -0.5),
        (RMSE, 1e300, -1.0),
        (ACCURACY, 0.6, 0.0),
        (ACCURACY, 0.9, 1.0),
        (ACCURACY, 0.75, 0.5),
        (ACCURACY, 0.0, -1.0),
    ],
)
def test_zero_is_the_baseline_and_one_the_reference(metric: Metric, score: float, expected: float) -> None:
    assert normalised(metric, score) == pytest.approx(expected)
    assert beats_baseline(metric, score) == (expected > 0)


def action(role: str, success: bool, *, turn: int = 0, repaired: bool = False, **facts: Fact) -> Action:
    evidence = Evidence(success=success, fault=None if success else "x", facts=facts)
    return Action(
        role=role, turn=turn, adapter=f"{role}@0", prompt_ids=(1,), output_ids=(2,), logprobs=(0.0,),
        finish_reason="stop", text="", evidence=evidence, repaired=repaired,
    )  # fmt: skip


SUBMITTED: dict[str, Fact] = {"submission.csv": True, "score": 7.0, "normalised": 0.5}
GOOD = (action("engineer", True), action("modeler", True, score=6.0), action("analyst", True, **SUBMITTED))


def test_a_chain_of_successes_with_a_submission() -> None:
    assert outcome(TASK, GOOD) == Outcome(success=True, metrics={"score": 7.0, "normalised": 0.5})


def test_a_repaired_chain_is_no_success_but_has_its_score() -> None:
    analyst = action("analyst", True, repaired=True, **SUBMITTED)
    result = outcome(TASK, (action("engineer", False), action("modeler", True, repaired=True), analyst))
    assert result == Outcome(success=False, metrics={"score": 7.0, "normalised": 0.5})
    assert not outcome(TASK, (*GOOD[:2], analyst)).success


def test_one_role_that_fails_is_enough() -> None:
    for place in range(3):
        actions = [
            action(past.role, number != place, **past.evidence.facts)
            for number, past in enumerate(GOOD)
            if past.evidence
        ]
        assert not outcome(TASK, actions).success


def test_the_last_action_of_a_role_counts() -> None:
    assert outcome(TASK, (action("engineer", False), action("engineer", True, turn=1), *GOOD[1:])).success
    assert not outcome(TASK, (GOOD[0], action("engineer", False, turn=1), *GOOD[1:])).success


def test_of_a_file_that_several_made_the_last_makers_counts() -> None:
    produces = {"writer": ("submission.csv",), "fixer": ("submission.csv",)}
    bad: dict[str, Fact] = SUBMITTED | {"score": 99.0, "normalised": -1.0}
    mended = outcome(TASK, (action("writer", False, **bad), action("fixer", True, **SUBMITTED)), produces)
    assert mended == Outcome(success=True, metrics={"score": 7.0, "normalised": 0.5})
    spoiled = (action("writer", True, **SUBMITTED), action("fixer", True, **SUBMITTED), action("writer", False, **bad))
    assert outcome(TASK, spoiled, produces) == Outcome(success=False, metrics={"score": 99.0, "normalised": -1.0})


def test_without_a_graded_submission_there_is_no_success() -> None:
    assert outcome(TASK, ()) == Outcome(success=False)
    assert outcome(TASK, GOOD[:2]) == Outcome(success=False)
    nothing = action("analyst", False, **{"submission.csv": False, "score": None, "normalised": None})
    assert outcome(TASK, (*GOOD[:2], nothing)) == Outcome(success=False)
