"""The embedded coach: a rubric over the evidence. No network, no model, the same verdict every time.

Every line of a rubric gives points for one fact that the task's own checks established. `ran` is the coach's own: the
code was executed to its end. A rubric's lines add up to 10.

    makes X_train.pkl ...         makes model.pkl               makes submission.csv
    2    ran                      2  ran                        2  ran
    1    X_train.pkl loads        2  model.pkl loads            1  submission.csv is there
    1    y_train.pkl loads        1  it has a predict           2  its columns are the id and the target
    1    X_test.pkl loads         1  one value per row          1  one row per test id
    0.5  shapes                   1  beats the baseline         1  valid values
    0.5  ids in X_test's index    3  x normalised score         1  beats the baseline
    0.5  target not in X                                        2  x normalised score
    0.5  same columns
    1    y is the target
    1    only numbers
    1    nothing missing

The normalised score counts from 0 (the baseline) to 1 (the reference), so the last points come smoothly.

Rules, in this order:
1. The sandbox failed, or nothing was measured: no score. It is masked, never guessed.
2. No code: at most 1.
3. Victim of an upstream role: between 3 and 5. A file the role needs is not there and was not put right (nor deleted by
   the role itself); or the files are there, but an upstream role failed and the code died of a ValueError, which is how
   pandas and scikit-learn refuse bad tables. Not a victim is whose own code is at fault: it does not parse, uses a name
   or module that is not there, opens a file that nobody was to make, or was stopped by a limit.
4. Code that did not run to its end: at most 5; what it saved before counts.
5. A required file is not there or does not load: at most 4, since nobody can go on from there.
6. The part is not done, for whatever reason the task's checks found: at most 6, so that work that looks right but is of
   no use (tables of the wrong rows, text left in) never comes close to work that is.
7. A model that works but could not be graded, because X_test.pkl is another role's to make: half the metric's points,
   and rule 6 does not apply.
"""

from __future__ import annotations

import re

from msgspec import Struct

from mappa.coach.context import ActionContext
from mappa.errors import CoachError
from mappa.types import Evidence, ExecutionResult, Fact, Role, Verdict

NO_CODE_CAP = 1.0
CRASH_CAP = 5.0
UNUSABLE_CAP = 4.0
UNDONE_CAP = 6.0
VICTIM_RANGE = (3.0, 5.0)
QUOTE_LENGTH = 160

OWN_ERRORS = ("SyntaxError", "IndentationError", "TabError", "NameError", "ImportError", "ModuleNotFoundError")


class Line(Struct, frozen=True):
    """Points for one fact: all or none for a truth, in proportion for a normalised score."""

    fact: str
    points: float

    def earned(self, value: Fact) -> float:
        if isinstance(value, bool):
            return self.points if value else 0.0
        return self.points * min(max(float(value), 0.0), 1.0) if isinstance(value, (int, float)) else 0.0


ENGINEER = (
    Line("ran", 2),
    Line("X_train.pkl", 1),
    Line("y_train.pkl", 1),
    Line("X_test.pkl", 1),
    Line("shapes", 0.5),
    Line("ids", 0.5),
    Line("target_left_out", 0.5),
    Line("same_columns", 0.5),
    Line("target_values", 1),
    Line("numeric", 1),
    Line("no_missing", 1),
)
MODELER = (
    Line("ran", 2),
    Line("model.pkl", 2),
    Line("has_predict", 1),
    Line("predicts", 1),
    Line("beats_baseline", 1),
    Line("normalised", 3),
)
ANALYST = (
    Line("ran", 2),
    Line("submission.csv", 1),
    Line("columns", 2),
    Line("ids", 1),
    Line("values", 1),
    Line("beats_baseline", 1),
    Line("normalised", 2),
)
RUBRICS = {"X_train.pkl": ENGINEER, "model.pkl": MODELER, "submission.csv": ANALYST}
METRIC_LINES = ("beats_baseline", "normalised")


class RubricCoach:
    """Implements `Coach` by the rules above."""

    name = "rubric@1"

    async def score(self, context: ActionContext) -> Verdict:
        return judge(context, self.name)


def judge(context: ActionContext, coach: str) -> Verdict:
    """The verdict on one action. Its evidence holds the points of every line, and each rule that was applied."""
    rubric = rubric_of(context.role)
    execution, evidence = context.action.execution, context.action.evidence
    if execution is not None and execution.outcome == "sandbox-failure":
        return Verdict(score=None, reason="The sandbox failed, which is nobody's fault.", coach=coach)
    if evidence is None:
        return Verdict(score=None, reason="What the role left behind was not measured.", coach=coach)
    points = _points(rubric, context, evidence)
    total = sum(points.values())
    rules: dict[str, Fact] = {"truncated": True} if context.action.finish_reason == "length" else {}
    if execution is None:
        total = min(total, NO_CODE_CAP)
        rules["cap"] = NO_CODE_CAP
    elif is_victim(context, execution):
        total = min(max(total, VICTIM_RANGE[0]), VICTIM_RANGE[1])
        rules["upstream_fault"] = True
    else:
        undone = not evidence.success and not _ungraded_through_no_fault(context, evidence)
        rated = ((CRASH_CAP, _crashed(execution)), (UNUSABLE_CAP, _unusable(context)), (UNDONE_CAP, undone))
        caps = [cap for cap, applies in rated if applies]
        if caps and total > min(caps):
            total = min(caps)
            rules["cap"] = total
    return Verdict(
        score=round(total, 2), reason=_reason(context, evidence, rules), coach=coach, evidence={**points, **rules}
    )


def rubric_of(role: Role) -> tuple[Line, ...]:
    """The rubric for what `role` must produce. Raises CoachError if there is none."""
    for name, rubric in RUBRICS.items():
        if name in role.produces:
            return rubric
    raise CoachError(
        f"the rubric coach has no rubric for role {role.name!r}, which produces "
        f"{', '.join(role.produces) or 'nothing'}; it knows roles that produce {', '.join(RUBRICS)}"
    )


def is_victim(context: ActionContext, execution: ExecutionResult) -> bool:
    """Rule 3: it could not have done better than what an upstream role left it."""
    if context.action.repaired or execution.outcome not in ("ok", "error"):
        return False
    exception = execution.exception or ""
    kind = exception.partition(":")[0].strip()
    missing = [name for name in context.role.needs if name not in context.files and name not in execution.deleted]
    if missing:
        names_one = any(name in exception for name in missing)
        return kind not in OWN_ERRORS and (kind != "FileNotFoundError" or names_one)
    return kind == "ValueError" and not all(context.upstream.values())


def _points(rubric: tuple[Line, ...], context: ActionContext, evidence: Evidence) -> dict[str, float]:
    execution = context.action.execution
    ran = execution is not None and execution.outcome == "ok"
    facts: dict[str, Fact] = {**evidence.facts, "ran": ran}
    points = {line.fact: line.earned(facts.get(line.fact)) for line in rubric}
    if _ungraded_through_no_fault(context, evidence):
        points |= {line.fact: line.points / 2 for line in rubric if line.fact in METRIC_LINES}
    return points


def _ungraded_through_no_fault(context: ActionContext, evidence: Evidence) -> bool:
    works = evidence.facts.get("predicts") is True and evidence.facts.get("graded") is False
    return works and "X_test.pkl" not in context.files and "X_test.pkl" not in context.role.produces


def _crashed(execution: ExecutionResult) -> bool:
    return execution.outcome != "ok"


def _unusable(context: ActionContext) -> bool:
    evidence = context.action.evidence
    return evidence is not None and not all(evidence.facts.get(name) is True for name in context.role.produces)


def _reason(context: ActionContext, evidence: Evidence, rules: dict[str, Fact]) -> str:
    """One sentence: how the code ended, the first fault, the rule that decided."""
    parts = [_ending(context.action.execution)]
    if evidence.fault is not None:
        parts.append(evidence.fault)
    elif isinstance(normalised := evidence.facts.get("normalised"), float):
        parts.append(
            f"all that is required is there, at {normalised:.2f} of the way from the baseline to the reference"
        )
    else:
        parts.append("all that is required is there")
    if "upstream_fault" in rules:
        failed = [role for role, success in context.upstream.items() if not success]
        parts.append(f"the fault lies upstream{f' with {failed[0]}' if failed else ''}")
    if "cap" in rules:
        parts.append(f"at most {rules['cap']:g}")
    if "truncated" in rules:
        parts.append("cut off at the token limit")
    return "; ".join(parts) + "."


def _ending(execution: ExecutionResult | None) -> str:
    if execution is None:
        return "No code block"
    if execution.outcome == "ok":
        return "Ran to its end"
    if execution.exception is None:
        return f"Stopped: {execution.outcome}"
    exception = re.sub(r"\s+", " ", execution.exception)
    quoted = exception if len(exception) <= QUOTE_LENGTH else exception[:QUOTE_LENGTH] + "..."
    where = f" in line {execution.exception_line}" if execution.exception_line is not None else ""
    return f"Crashed{where} with {quoted}"
