"""Ten episodes in which it matters whom a coach blames, each with the evidence that its verdicts hang on.

What the rubric coach gives, at once and in retrospect, is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mappa.coach import ActionContext
from mappa.types import Action, Evidence, ExecutionOutcome, ExecutionResult, Fact, Message, Role, Task

TABLES = ("X_train.pkl", "y_train.pkl", "X_test.pkl")
ENGINEER = Role(name="data_engineer", prompt="Prepare the tables.", produces=TABLES)
MODELER = Role(name="modeler", prompt="Fit a model.", needs=TABLES[:2], produces=("model.pkl",))
ANALYST = Role(
    name="analyst", prompt="Write predictions.", needs=("model.pkl", "X_test.pkl"), produces=("submission.csv",)
)
SOLVER = Role(name="solver", prompt="Reason.")
EXECUTOR = Role(name="executor", prompt="Compute.")
VERIFIER = Role(name="verifier", prompt="Check, and give the boxed answer.")

ENGINEER_FACTS = (*TABLES, "shapes", "ids", "target_left_out", "same_columns", "target_values", "numeric", "no_missing")
MODEL_FACTS = ("model.pkl", "has_predict", "predicts", "graded", "beats_baseline")
SUBMISSION_FACTS = ("submission.csv", "readable", "columns", "ids", "values", "beats_baseline")

TABULAR = Task(id="Boston", kind="regression", prompt="Target: medv (regression).", target="medv")
MATHS = Task(id="sum", kind="algebra", prompt="What is 6 times 7?", answer="42")


@dataclass
class Step:
    """One action: what it wrote, what came of it, and the scores that are right."""

    role: Role
    at_once: float
    in_the_end: float
    text: str = "```python\npass\n```"
    outcome: ExecutionOutcome | None = "ok"
    exception: str | None = None
    stdout: str = ""
    makes: tuple[str, ...] | None = None
    """Files, where they are not all that the role must produce."""
    changes: tuple[str, ...] = ()
    facts: dict[str, Fact] = field(default_factory=dict)
    """Beyond those of perfect work."""
    fault: str | None = None
    hangs_on: str = ""
    """Words of the prompt that a verdict cannot do without."""


@dataclass
class Scenario:
    name: str
    task: Task
    steps: tuple[Step, ...]
    rubric: str = "data-science"


def perfect(role: Role) -> dict[str, Fact]:
    names = {
        "data_engineer": ENGINEER_FACTS,
        "modeler": MODEL_FACTS,
        "analyst": SUBMISSION_FACTS,
        "solver": ("answered", "correct"),
        "executor": ("printed", "prints_answer"),
        "verifier": ("answered", "boxed", "correct"),
    }[role.name]
    graded: dict[str, Fact] = {"score": 3.2, "normalised": 1.0} if role in (MODELER, ANALYST) else {}
    return {**dict.fromkeys(names, True), **graded}


def nothing(role: Role) -> dict[str, Fact]:
    return {name: None if name in ("score", "normalised") else False for name in perfect(role)}


def contexts(scenario: Scenario) -> list[ActionContext]:
    """The episode as its coach sees it, action by action."""
    found: list[ActionContext] = []
    files: dict[str, int] = {}
    upstream: dict[str, bool] = {}
    for step in scenario.steps:
        made = step.role.produces if step.makes is None else step.makes
        execution = None
        if step.outcome is not None:
            files |= dict.fromkeys((*made, *step.changes), 100)
            execution = ExecutionResult(
                outcome=step.outcome, exit_code=0 if step.outcome == "ok" else 1, exception=step.exception,
                stdout=step.stdout, stdout_bytes=len(step.stdout), created=dict.fromkeys(made, 100),
                changed=dict.fromkeys(step.changes, 100), exception_line=4 if step.exception else None,
            )  # fmt: skip
        success = step.fault is None
        action = Action(
            role=step.role.name, turn=0, adapter=f"{step.role.name}@0", prompt_ids=(1,), output_ids=(2,),
            logprobs=(-0.1,), finish_reason="stop", text=step.text, execution=execution,
            evidence=Evidence(success=success, fault=step.fault, facts=perfect(step.role) | step.facts),
        )  # fmt: skip
        found.append(
            ActionContext(
                task=scenario.task,
                role=step.role,
                action=action,
                files=dict(files),
                upstream=dict(upstream),
                messages=(Message("system", step.role.prompt), Message("user", scenario.task.prompt)),
                earlier=tuple(context.action for context in found),
            )
        )
        upstream[step.role.name] = success
    return found


def missing(name: str) -> str:
    return f"FileNotFoundError: [Errno 2] No such file or directory: '{name}'"


def victim_analyst(*, of: str) -> Step:
    """The analyst whose code dies of what it was left, a missing file or an exception."""
    exception = missing(of) if of.endswith(".pkl") else of
    return Step(
        ANALYST, 3.0, 3.0, text="```python\nmodel = pd.read_pickle('model.pkl')\n```", outcome="error",
        exception=exception, makes=(), facts=nothing(ANALYST), fault="submission.csv missing", hangs_on="upstream",
    )  # fmt: skip


NO_TEST_TABLE: dict[str, Fact] = dict.fromkeys(
    ("X_test.pkl", "shapes", "ids", "target_left_out", "same_columns", "numeric", "no_missing"), False
)
UNGRADED: dict[str, Fact] = {"graded": False, "beats_baseline": False, "score": None, "normalised": None}
UNUSABLE = UNGRADED | {"predicts": False}
WEAK: dict[str, Fact] = {"accuracy": 0.89, "f1": 0.23, "score": 0.89, "normalised": 0.1}

SCENARIOS = (
    Scenario(
        "a test table that was never saved",
        TABULAR,
        (
            Step(
                ENGINEER, 4.0, 2.0, makes=TABLES[:2], facts=NO_TEST_TABLE, fault="X_test.pkl missing",
                hangs_on='"X_test.pkl":false',
            ),
            Step(MODELER, 8.0, 8.0, facts=UNGRADED, fault="model cannot be graded: X_test.pkl missing"),
            victim_analyst(of="X_test.pkl"),
        ),
    ),
    Scenario(
        "column names that differ between the tables",
        TABULAR,
        (
            Step(
                ENGINEER, 6.0, 2.0, facts={"same_columns": False}, fault="X_test.pkl lacks the columns 'crim', 'zn'",
                hangs_on='"same_columns":false',
            ),
            Step(MODELER, 5.0, 5.0, facts=UNUSABLE, fault="predict failed: feature names should match"),
            victim_analyst(of="ValueError: The feature names should match those that were passed during fit."),
        ),
    ),
    Scenario(
        "a table overwritten downstream",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(
                MODELER, 5.0, 2.0, text="```python\nX.head(0).to_pickle('X_test.pkl')\n```", changes=("X_test.pkl",),
                facts=UNUSABLE, fault="predict failed: Found array with 0 samples",
                hangs_on='"X_test.pkl":{"bytes":100,"made by":"modeler/0"}',
            ),
            victim_analyst(of="ValueError: Found array with 0 sample(s)"),
        ),
    ),
    Scenario(
        "a high accuracy without any F1",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(MODELER, 4.0, 4.0, facts=WEAK, hangs_on='"f1":0.23'),
            Step(ANALYST, 4.0, 4.0, facts=WEAK, hangs_on='"f1":0.23'),
        ),
        rubric="dsbench",
    ),
    Scenario(
        "a time limit",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(
                MODELER, 0.0, 0.0, outcome="timeout", makes=(), facts=nothing(MODELER), fault="model.pkl missing",
                hangs_on='"outcome":"timeout"',
            ),
            victim_analyst(of="model.pkl"),
        ),
    ),
    Scenario(
        "nothing written",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(
                MODELER, 0.0, 0.0, text="", outcome=None, makes=(), facts=nothing(MODELER), fault="model.pkl missing",
                hangs_on='"execution":null',
            ),
            victim_analyst(of="model.pkl"),
        ),
    ),
    Scenario(
        "a right answer in the wrong form",
        MATHS,
        (
            Step(SOLVER, 10.0, 10.0, text="6 times 7 is 42.", outcome=None),
            Step(EXECUTOR, 10.0, 10.0, stdout="42\n"),
            Step(
                VERIFIER, 6.0, 6.0, text="The answer is 42.", outcome=None, facts={"boxed": False},
                fault="the answer is not boxed", hangs_on='"boxed":false',
            ),
        ),
    ),
    Scenario(
        "a tool result that no tool gave",
        MATHS,
        (
            Step(SOLVER, 10.0, 10.0, text="6 times 7 is 42.", outcome=None),
            Step(
                EXECUTOR, 2.0, 2.0, text="```python\nprint(6 + 7)\n```\n```output\n43\n```", stdout="13\n",
                facts={"prints_answer": False}, fault="what it printed is not the answer", hangs_on="13",
            ),
            Step(
                VERIFIER, 4.0, 4.0, text="The tool says \\boxed{43}.", outcome=None, facts={"correct": False},
                fault="43 is not the answer",
            ),
        ),
    ),
    Scenario(
        "a victim with a fault of its own",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(
                MODELER, 0.0, 0.0, outcome="error", exception="NameError: name 'sklearn' is not defined", makes=(),
                facts=nothing(MODELER), fault="model.pkl missing", hangs_on='"exception":"NameError"',
            ),
            Step(
                ANALYST, 0.0, 0.0, outcome="error", exception="SyntaxError: '(' was never closed", makes=(),
                facts=nothing(ANALYST), fault="submission.csv missing", hangs_on='"exception":"SyntaxError"',
            ),
        ),
    ),
    Scenario(
        "a file that nobody was to make",
        TABULAR,
        (
            Step(ENGINEER, 10.0, 10.0),
            Step(MODELER, 10.0, 10.0),
            Step(
                ANALYST, 0.0, 0.0, text="```python\npd.read_pickle('modle.pkl')\n```", outcome="error",
                exception=missing("modle.pkl"), makes=(), facts=nothing(ANALYST), fault="submission.csv missing",
                hangs_on="modle.pkl",
            ),
        ),
    ),
)  # fmt: skip
