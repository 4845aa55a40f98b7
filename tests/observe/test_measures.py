"""What episodes come to: every number against one worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mappa.observe.evaluation import (
    EvaluationResult,
    contamination_text,
    evaluation_text,
    losses_text,
    paired_lines,
    paired_text,
)
from mappa.observe.measures import habits, measures, pass_at_k
from mappa.observe.statistics import paired_difference
from mappa.types import Action, Episode, ExecutionResult, Outcome


def episode(task: str, kind: str, *actions: Action, **metrics: float) -> Episode:
    return Episode(
        id="e", task=task, kind=kind, seed=0, step=0, actions=actions,
        outcome=Outcome(success=metrics.get("score", 0) > 0.5, metrics=metrics),
    )  # fmt: skip


def lost(task: str, kind: str) -> Episode:
    return Episode(id="e", task=task, kind=kind, seed=0, step=0, error="SamplerError: gone")


def action(role: str, tokens: int, outcome: str | None = None, *, cut: bool = False) -> Action:
    return Action(
        role=role, turn=0, adapter=f"{role}@0", prompt_ids=(1,), output_ids=(2,) * tokens, logprobs=(0.0,) * tokens,
        finish_reason="length" if cut else "stop", text="",
        execution=None if outcome is None else ExecutionResult(outcome=outcome),  # type: ignore[arg-type]
    )  # fmt: skip


CLASSES = [
    episode("c1", "classification", score=0.9, accuracy=0.9, f1=0.8, auc=0.95, normalised=0.5),
    episode("c1", "classification"),
    episode("c2", "classification", score=0.7, accuracy=0.7, f1=0.6, normalised=1.2),
    lost("c2", "classification"),
]
NUMBERS = [
    episode("r1", "regression", score=0.1, rmse_of_range=0.1, normalised=-1.0),
    episode("r1", "regression"),
]
BY_TASK = [CLASSES[:2], CLASSES[2:], NUMBERS]


def test_a_failed_run_counts_in_the_fair_numbers_only() -> None:
    found = {name: share[0] for name, share in measures(BY_TASK).items()}
    assert found == pytest.approx(
        {
            "submission": 3 / 6,
            "accuracy": 0.8, "accuracy, fair": (0.9 + 0.5 + 0.7 + 0.5) / 4,
            "f1": 0.7, "f1, fair": (0.8 + 0.6) / 4,
            "auc": 0.95, "auc, fair": (0.95 + 0.5) / 2,  # c2 has no AUC, and its lost episode none to lose
            "rmse_of_range": 0.1, "rmse_of_range, fair": (0.1 + 0.5) / 2,
            "normalised, DSBench": (0.5 + 1.2 + 0) / 6,
            "pass@2": (1 + 1 + 0) / 3,
        }
    )  # fmt: skip
    for mean, low, high in measures(BY_TASK).values():
        assert low <= mean <= high


def test_nothing_but_failures_still_has_its_fair_numbers() -> None:
    failures = [[lost("c", "classification")], [lost("r", "regression")]]
    assert {name: share[0] for name, share in measures(failures).items()} == {
        "submission": 0.0,
        "accuracy, fair": 0.5,
        "f1, fair": 0.0,
        "rmse_of_range, fair": 0.5,
        "normalised, DSBench": 0.0,
    }


def test_maths_has_pass_at_k_alone() -> None:
    right = Episode(id="e", task="m", kind="algebra", seed=0, step=0, outcome=Outcome(success=True))
    wrong = Episode(id="e", task="m", kind="algebra", seed=0, step=0, outcome=Outcome(success=False))
    found = measures([[right, wrong, wrong, wrong], [wrong] * 4])
    assert {name: share[0] for name, share in found.items()} == pytest.approx({"pass@2": 0.25, "pass@4": 0.5})
    assert list(measures([[right, wrong, wrong]])) == ["pass@2", "pass@3"] and measures([[right]]) == {}
    assert measures([[wrong, wrong]] * 6)["pass@2"] == pytest.approx((0.0, 0.0, 0.3903), abs=1e-4), "Wilson's, 0 of 6"
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3) and pass_at_k(4, 3, 2) == 1.0


def test_how_a_role_works() -> None:
    one = episode("a", "x", action("coder", 10, "ok"), action("coder", 30, "error"), action("judge", 5))
    other = episode("b", "x", action("coder", 20, cut=True))
    found = {name: share[0] for name, share in habits([[one], [other]], "coder").items()}
    assert found == pytest.approx({"tool use": 2 / 3, "errors": 0.5, "truncated": 1 / 3, "tokens": 20})
    assert "errors" not in habits([[one], [other]], "judge") and habits([[one]], "nobody") == {}


def test_the_paired_test_is_exact_on_few_tasks() -> None:
    gap, low, high, p = paired_difference([[0.0, 0.0]] * 5, [[1.0, 0.0]] * 5)
    assert (gap, low, high) == (0.5, 0.5, 0.5) and p == pytest.approx(2 / 2**5)
    gap, low, high, p = paired_difference([[0.2], [0.8]], [[0.8], [0.2]])
    assert gap == pytest.approx(0) and low < 0 < high and p == 1.0
    many = paired_difference([[0.0]] * 40, [[1.0]] * 39 + [[-1.0]])
    assert many[3] < 0.01 and many == paired_difference([[0.0]] * 40, [[1.0]] * 39 + [[-1.0]])
    for scale in (1e-9, 1.0, 1e9):  # whatever its unit, no rounding hides the outcome that was seen
        for seed in range(20):
            after = np.random.default_rng(seed).uniform(0, scale, (10, 1)).tolist()
            assert paired_difference([[0.0]] * 10, after)[3] == 2 / 2**10
    with pytest.raises(ValueError, match="at least one task"):
        paired_difference([[]], [[]])


def test_the_paired_test_sees_what_unpaired_intervals_hide() -> None:
    before = [[task / 12] for task in range(12)]
    after = [[task / 12 + 0.05] for task in range(12)]
    gap, low, high, p = paired_difference(before, after)
    assert gap == pytest.approx(0.05) and low == pytest.approx(0.05) and high == pytest.approx(0.05) and p < 0.001


def test_a_result_is_shown_with_its_measures() -> None:
    def result(success: float, **more: object) -> EvaluationResult:
        return EvaluationResult(
            mode="sampled", success=success, ci=(0.1, 0.9), roles={"coder": (0.5, 0.4, 0.6)}, episodes=4,
            tasks={"a": success, "b": success}, measures={"accuracy, fair": (success, 0.2, 0.7)},
            habits={"coder": {"tokens": (20.0, 10.0, 30.0), "errors": (0.5, 0.0, 1.0)}}, **more,
            by_task={"auc, fair": {"a": success, "b": success / 2}, "coder: tokens": {"a": 4.0}},
        )  # type: ignore[arg-type] # fmt: skip

    before, after = result(0.5), result(0.75, overlaps=("b and t: 13-gram, 40 %",), refused=3)
    text = evaluation_text(before, after)
    assert "accuracy, fair" in text and "50.0 % [20.0, 70.0]" in text and "+25.0" in text
    assert "coder: tokens" in text and "20.00 [10.00, 30.00]" in text
    assert paired_text(before, after) == "success, paired over 2 tasks: +25.0 points [+25.0, +25.0], sign-flip p = 0.5"
    assert list(paired_lines(before, after))[1:] == [
        "auc, fair, paired over 2 tasks: +18.8 points [+12.5, +25.0], sign-flip p = 0.5",
        "coder: tokens, paired over 1 tasks: +0.0 [+0.0, +0.0], sign-flip p = 1",
    ]
    assert "1 held-out tasks overlap" in contamination_text(after) and "13-gram" in contamination_text(after)
    assert "no held-out task shares" in contamination_text(before)
    failing = result(0.5, lost=3, cut=1, losses={"a": "2 lost: TeamError: idle", "b": "1 lost: TaskError: no"})
    assert losses_text(failing, most=1) == "a: 2 lost: TeamError: idle\nand 1 more tasks" and losses_text(after) == ""
    shown = evaluation_text(failing)
    assert "episodes lost, counted failed" in shown and "episodes cut at their deadline" in shown
    empty = EvaluationResult(mode="sampled", success=0, ci=(0, 1), roles={}, episodes=0)
    assert "nothing to compare" in paired_text(before, empty)
    both = evaluation_text(before, empty) + evaluation_text(empty, before)
    assert both.count("none") >= 4, "a role that only one of two teams has"
