"""The rubric coach on actions built by hand: each rule, and who is to blame for what."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from mappa.coach import ActionContext, check_roles, load_coach
from mappa.coach.rubrics import load_rubric
from mappa.config import CoachConfig, load_config
from mappa.errors import CoachError
from mappa.types import Action, Evidence, ExecutionOutcome, ExecutionResult, Fact, FinishReason, Role, Task, Verdict

CONFIGS = Path(__file__).parents[2] / "configs"
TASK = Task(id="Boston", kind="regression", prompt="Target: medv (regression).", target="medv")
ENGINEER = Role(name="engineer", prompt="", produces=("X_train.pkl", "y_train.pkl", "X_test.pkl"))
MODELER = Role(name="modeler", prompt="", needs=("X_train.pkl", "y_train.pkl"), produces=("model.pkl",))
ANALYST = Role(name="analyst", prompt="", needs=("model.pkl", "X_test.pkl"), produces=("submission.csv",))
ENGINEERED = ("X_train.pkl", "y_train.pkl", "X_test.pkl")

PERFECT: dict[str, dict[str, Fact]] = {
    "engineer": dict.fromkeys(
        (*ENGINEERED, "shapes", "ids", "target_left_out", "same_columns", "target_values", "numeric", "no_missing"),
        True,
    ),
    "modeler": {
        **dict.fromkeys(("model.pkl", "has_predict", "predicts", "graded", "beats_baseline"), True),
        "score": 3.2,
        "normalised": 1.0,
    },
    "analyst": {
        **dict.fromkeys(("submission.csv", "readable", "columns", "ids", "values", "beats_baseline"), True),
        "score": 3.2,
        "normalised": 1.0,
    },
}
OK = ExecutionResult(outcome="ok", exit_code=0)


def crash(exception: str) -> ExecutionResult:
    return ExecutionResult(outcome="error", exit_code=1, exception=exception, exception_line=4)


def nothing(role: Role) -> dict[str, Fact]:
    """The facts of a role that left nothing behind."""
    facts = PERFECT[role.name]
    return {name: None if name in ("score", "normalised") else False for name in facts}


def context(
    role: Role,
    *,
    execution: ExecutionResult | None = OK,
    facts: dict[str, Fact] | None = None,
    fault: str | None = None,
    files: tuple[str, ...] = (*ENGINEERED, "model.pkl", "submission.csv"),
    upstream: dict[str, bool] | None = None,
    repaired: bool = False,
    finish_reason: FinishReason = "stop",
) -> ActionContext:
    facts = PERFECT[role.name] if facts is None else facts
    action = Action(
        role=role.name, turn=0, adapter=f"{role.name}@0", prompt_ids=(1,), output_ids=(2,), logprobs=(-0.1,),
        finish_reason=finish_reason, text="", execution=execution, repaired=repaired,
        evidence=Evidence(success=fault is None, fault=fault, facts=facts),
    )  # fmt: skip
    return ActionContext(task=TASK, role=role, action=action, files=dict.fromkeys(files, 100), upstream=upstream or {})


def verdict(of: ActionContext) -> Verdict:
    return asyncio.run(load_coach(CoachConfig()).score(of))


def score(of: ActionContext) -> float:
    found = verdict(of).score
    assert found is not None
    return found


# --- the lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [ENGINEER, MODELER, ANALYST], ids=lambda role: role.name)
def test_perfect_work_gets_ten(role: Role) -> None:
    found = verdict(context(role))
    assert (found.score, found.coach) == (10.0, "rubric@2")
    assert found.reason.startswith("Ran to its end; all that is required is there")


@pytest.mark.parametrize("role", [ENGINEER, MODELER, ANALYST], ids=lambda role: role.name)
def test_every_missing_piece_costs(role: Role) -> None:
    part = load_rubric("data-science").part(role)
    assert part is not None
    for line in part.lines:
        if line.fact != "ran":
            facts = PERFECT[role.name] | {line.fact: 0.0 if line.fact == "normalised" else False}
            assert score(context(role, facts=facts, fault="one thing is wrong")) <= 10 - line.points, line.fact


@pytest.mark.parametrize("role", [MODELER, ANALYST], ids=lambda role: role.name)
def test_the_last_points_follow_the_metric(role: Role) -> None:
    def at(normalised: float) -> float:
        return score(context(role, facts=PERFECT[role.name] | {"normalised": normalised}))

    assert at(0.0) < at(0.25) < at(0.5) < at(1.0) == at(1.4) == 10
    assert at(0.5) == pytest.approx((at(0.0) + at(1.0)) / 2)
    worse_than_trivial = PERFECT[role.name] | {"normalised": -0.7, "beats_baseline": False}
    assert score(context(role, facts=worse_than_trivial, fault="no better than the baseline")) == min(at(0.0) - 1, 6)


def test_only_a_rubric_that_names_a_metric_sets_caps_by_it() -> None:
    """The paper's caps are for its own run; the quickstart is rewarded relative to each task's reference."""
    made = context(MODELER, facts=PERFECT["modeler"] | {"accuracy": 0.6, "f1": 0.2, "normalised": 0.8})

    def at(config: str) -> float | None:
        return asyncio.run(load_coach(load_config(CONFIGS / config).coach).score(made)).score

    assert at("quickstart.toml") == pytest.approx(9.4)
    assert at("dsbench-qwen3-4b-8gpu.toml") == 4.0


def test_work_that_is_of_no_use_never_comes_close_to_work_that_is() -> None:
    """Tables of the wrong rows: every file is there and loads, and nobody can use them."""
    wrong_rows = context(ENGINEER, facts=PERFECT[ENGINEER.name] | {"shapes": False}, fault="X_train.pkl has 77 rows")
    assert score(wrong_rows) == 6


def test_no_score_leaves_the_range() -> None:
    """Any evidence at all: random facts, endings and circumstances."""
    rng = random.Random(0)
    endings: list[ExecutionOutcome] = ["ok", "error", "timeout", "memory", "output-limit", "disk-limit", "killed"]
    exceptions = [None, "ValueError: x", "SyntaxError: x", "FileNotFoundError: 'model.pkl'"]
    for _ in range(2000):
        role = rng.choice([ENGINEER, MODELER, ANALYST])
        facts: dict[str, Fact] = {name: rng.random() < 0.5 for name in PERFECT[role.name]}
        facts["normalised"] = rng.choice([None, -1.0, 0.3, 2.0])
        execution = ExecutionResult(outcome=rng.choice(endings), exception=rng.choice(exceptions))
        made = context(
            role,
            facts=facts,
            fault="something",
            execution=rng.choice([None, execution]),
            files=tuple(rng.sample(ENGINEERED, 2)),
            upstream={"engineer": rng.random() < 0.5},
            repaired=rng.random() < 0.5,
        )
        first = verdict(made)
        assert first.score is not None
        assert 0 <= first.score <= 10
        assert verdict(made) == first, "the same action got two verdicts"


# --- the rules -------------------------------------------------------------------------------------------------------


def test_no_code_gets_at_most_one() -> None:
    found = verdict(context(ENGINEER, execution=None, fault="X_train.pkl missing", facts=nothing(ENGINEER)))
    assert (found.score, found.reason) == (0.0, "No code block; X_train.pkl missing; at most 1.")
    assert score(context(ENGINEER, execution=None)) == 1.0


def test_a_crash_keeps_what_was_saved_up_to_five() -> None:
    found = verdict(context(ENGINEER, execution=crash("KeyError: 'speed'")))
    assert found.score == 5.0
    assert found.reason.startswith("Crashed in line 4 with KeyError: 'speed';")
    assert found.evidence["cap"] == 5.0
    nothing_saved = context(ENGINEER, execution=crash("KeyError: 'speed'"), facts=nothing(ENGINEER), fault="X")
    assert score(nothing_saved) == 0.0
    timeout = verdict(context(MODELER, execution=ExecutionResult(outcome="timeout")))
    assert timeout.score == 5.0
    assert timeout.reason.startswith("Stopped: timeout;")


def test_running_alone_is_worth_two() -> None:
    for role in ENGINEER, MODELER, ANALYST:
        assert score(context(role, facts=nothing(role), fault=f"{role.produces[0]} missing")) == 2.0


def test_a_failed_sandbox_is_a_missing_score() -> None:
    found = verdict(context(MODELER, execution=ExecutionResult(outcome="sandbox-failure")))
    assert found.score is None
    assert "sandbox failed" in found.reason


def test_what_was_not_measured_is_a_missing_score() -> None:
    made = context(MODELER)
    found = verdict(replace(made, action=replace(made.action, evidence=None)))
    assert found.score is None
    assert "not measured" in found.reason


def test_truncation_is_noted() -> None:
    found = verdict(context(ENGINEER, finish_reason="length"))
    assert found.evidence["truncated"] is True
    assert found.reason.endswith("cut off at the token limit.")


def test_the_fault_is_quoted_as_it_was_found() -> None:
    facts = (
        PERFECT["analyst"] | dict.fromkeys(("columns", "ids", "values", "beats_baseline"), False) | {"normalised": None}
    )
    found = verdict(context(ANALYST, facts=facts, fault="column 'hhv' is not the target 'HHV'"))
    assert found.reason == "Ran to its end; column 'hhv' is not the target 'HHV'."
    assert found.score == 3.0


def test_a_role_without_a_rubric_is_refused() -> None:
    poet = Role(name="poet", prompt="", produces=("poem.txt",))
    with pytest.raises(CoachError, match=r"no rubric for role 'poet', which produces poem.txt"):
        verdict(replace(context(MODELER), role=poet))
    with pytest.raises(CoachError, match=r"a rubric of your own \(coach.rubrics\)"):
        check_roles(CoachConfig(), [MODELER, poet])


@pytest.mark.parametrize(
    ("facts", "success", "expected"),
    [
        ({"answered": True, "correct": True}, True, 10.0),
        ({"answered": True, "correct": False}, False, 3.0),
        ({"answered": False, "correct": False}, False, 0.0),
        ({"answered": False, "printed": True, "prints_answer": True}, True, 10.0),
    ],
)
def test_any_role_of_a_task_with_an_answer_is_scored(facts: dict[str, Fact], success: bool, expected: float) -> None:
    debater = Role(name="debater", prompt="")
    check_roles(CoachConfig(), [debater, replace(debater, produces=("boxed",))])
    action = replace(context(MODELER).action, evidence=Evidence(success=success, facts=facts))
    assert score(replace(context(MODELER), role=debater, action=action, upstream={})) == expected


def test_evidence_shows_the_points() -> None:
    found = verdict(context(MODELER, facts=PERFECT["modeler"] | {"normalised": 0.5}))
    assert found.evidence == {
        "ran": 2.0, "model.pkl": 2.0, "has_predict": 1.0, "predicts": 1.0, "beats_baseline": 1.0, "normalised": 1.5,
    }  # fmt: skip


# --- blame -----------------------------------------------------------------------------------------------------------


def test_blame_for_a_missing_test_table() -> None:
    """The engineer forgets X_test.pkl, the modeler works, the analyst meets a FileNotFoundError."""
    without = PERFECT["engineer"] | dict.fromkeys(
        ("X_test.pkl", "shapes", "ids", "target_left_out", "same_columns", "numeric", "no_missing"), False
    )
    files = ("X_train.pkl", "y_train.pkl")
    engineer = verdict(context(ENGINEER, facts=without, fault="X_test.pkl missing", files=files))
    assert engineer.score == 4.0
    assert engineer.reason == "Ran to its end; X_test.pkl missing; at most 4."

    ungraded = PERFECT["modeler"] | {"graded": False, "beats_baseline": False, "score": None, "normalised": None}
    fault = "model cannot be graded: X_test.pkl missing"
    blamed = {"engineer": False}
    modeler = context(MODELER, facts=ungraded, fault=fault, files=(*files, "model.pkl"), upstream=blamed)
    assert score(modeler) == 8.0

    missing = crash("FileNotFoundError: [Errno 2] No such file or directory: 'X_test.pkl'")
    analyst = verdict(
        context(
            ANALYST,
            execution=missing,
            facts=nothing(ANALYST),
            fault="submission.csv missing",
            files=(*files, "model.pkl"),
            upstream=blamed,
        )
    )
    assert analyst.score == 3.0
    assert "the fault lies upstream with engineer" in analyst.reason
    assert analyst.evidence["upstream_fault"] is True


@pytest.mark.parametrize(
    ("execution", "victim"),
    [
        (crash("FileNotFoundError: [Errno 2] No such file or directory: 'model.pkl'"), True),
        (crash("ValueError: nothing to predict"), True),
        (OK, True),
        (crash("FileNotFoundError: [Errno 2] No such file or directory: 'modle.pkl'"), False),
        (crash("SyntaxError: '(' was never closed"), False),
        (crash("NameError: name 'pd' is not defined"), False),
        (crash("ModuleNotFoundError: No module named 'pandsa'"), False),
        (ExecutionResult(outcome="timeout"), False),
        (None, False),
    ],
    ids=["names it", "other error", "ran", "other file", "syntax", "name", "module", "timeout", "no code"],
)
def test_a_victim_of_a_missing_file_gets_three_to_five(execution: ExecutionResult | None, victim: bool) -> None:
    made = context(
        ANALYST, execution=execution, facts=nothing(ANALYST), fault="submission.csv missing",
        files=("X_test.pkl",), upstream={"modeler": False},
    )  # fmt: skip
    found = verdict(made)
    assert found.score is not None
    assert ("upstream_fault" in found.evidence) == victim
    assert 3 <= found.score <= 5 if victim else found.score <= 2


def test_a_file_that_was_put_right_excuses_nothing() -> None:
    missing = crash("FileNotFoundError: [Errno 2] No such file or directory: 'model.pkl'")
    made = context(
        ANALYST, execution=missing, facts=nothing(ANALYST), fault="submission.csv missing",
        upstream={"modeler": False}, repaired=True,
    )  # fmt: skip
    assert score(made) == 0.0


def test_deleting_what_one_needs_excuses_nothing() -> None:
    execution = replace(crash("FileNotFoundError: 'model.pkl'"), deleted=("model.pkl",))
    made = context(ANALYST, execution=execution, facts=nothing(ANALYST), fault="x", files=("X_test.pkl",))
    assert score(made) == 0.0


def test_bad_tables_from_upstream_excuse_a_value_error() -> None:
    execution = crash("ValueError: could not convert string to float: 'yes'")
    made = context(MODELER, execution=execution, facts=nothing(MODELER), fault="x", upstream={"engineer": False})
    assert score(made) == 3.0
    assert score(replace(made, upstream={"engineer": True})) == 0.0


def test_a_victim_is_not_paid_more_than_five() -> None:
    made = context(ANALYST, files=("X_test.pkl",), upstream={"modeler": False})
    assert score(made) == 5.0
