"""The embedded coach: a rubric over the evidence. No network, no model, the same verdict every time.

Every line of a rubric gives points for one fact that the task's own checks established (data/rubrics/*.toml). The
coach's own are `ran` (the code was executed to its end), `said` (an answer, or some output) and `done` (the evidence is
a success). A part's lines add up to 10.

    makes X_train.pkl ...         makes model.pkl               makes submission.csv
    2    ran                      2  ran                        2  ran
    1    X_train.pkl loads        2  model.pkl loads            1  submission.csv is there
    1    y_train.pkl loads        1  it has a predict           2  its columns are the id and the target
    1    X_test.pkl loads         1  one value per row          1  one row per test id
    0.5  shapes                   1  beats the baseline         1  valid values
    0.5  ids in X_test's index    3  x normalised score         1  beats the baseline
    0.5  target not in X                                        2  x normalised score
    0.5  same columns
    1    y is the target          solver                        verifier
    1    only numbers             3  an answer can be read off  2  an answer can be read off
    1    nothing missing          7  it is right                2  it stands in a box
                                                                6  it is right
    executor: 3 ran, 2 it printed something, 5 what it printed holds the right answer
    any other role of a task with an answer: 3 it said or printed one, 7 its part is done

The normalised score counts from 0 (the baseline) to 1 (the reference), so the last points come smoothly.

Rules, in this order; the numbers are the rubric's `caps`:
1. The sandbox failed, or nothing was measured: no score. It is masked, never guessed.
2. It shows tool output that no tool printed: at most 2.
3. No code where code is due, or nothing written at all: at most 1.
4. Victim of an upstream role: between 3 and 5. A file the role needs is not there and was not put right (nor deleted by
   the role itself); or the files are there, but an upstream role failed and the code died of a ValueError, which is how
   pandas and scikit-learn refuse bad tables. Not a victim is whose own code is at fault: it does not parse, uses a name
   or module that is not there, opens a file that nobody was to make, or was stopped by a limit.
5. Code that did not run to its end: at most 5; what it saved before counts.
6. A required file is not there or does not load: at most 4, since nobody can go on from there.
7. The part is not done, for whatever reason the task's checks found: at most 6, so that work that looks right but is of
   no use (tables of the wrong rows, text left in) never comes close to work that is.
8. A metric that the task reports under a name the rubric has bands for (those of `dsbench`: accuracy, auc, f1,
   rmse_of_range): at most what its band allows, the lowest where there are several.
9. A model that works but could not be graded, because X_test.pkl is another role's to make: half the metric's points,
   and rule 7 does not apply.

What becomes of a role whose fault is only seen downstream is the business of credit.py.
"""

from __future__ import annotations

import re

from mappa.coach.context import ActionContext
from mappa.coach.rubrics import SHIPPED, Part, Rubric, load_rubric
from mappa.errors import CoachError
from mappa.types import Evidence, ExecutionResult, Fact, Role, Verdict

VERSION = 2
QUOTE_LENGTH = 160

OWN_ERRORS = ("SyntaxError", "IndentationError", "TabError", "NameError", "ImportError", "ModuleNotFoundError")
METRIC_LINES = ("beats_baseline", "normalised")

_SHOWN_OUTPUT = re.compile(
    r"```(?:output|stdout|console|results?)[ \t]*\n(?P<block>.*?)(?:```|\Z)"
    r"|^[ \t*]*(?:tool|execution|program|script|code)[ _](?:output|result|stdout)s?[ \t*]*:(?P<line>[^\n]*)$",
    re.S | re.M | re.I,
)


class RubricCoach:
    """Implements `Coach` by the rules above, with the rubrics that come with mappa or others like them."""

    name = f"rubric@{VERSION}"
    stopped: str | None = None

    def __init__(self, rubrics: tuple[str, ...] = SHIPPED) -> None:
        self._rubrics = tuple(load_rubric(name) for name in rubrics)

    async def score(self, context: ActionContext) -> Verdict:
        rubric, part = part_of(context.role, self._rubrics)
        return judge(context, rubric, part, self.name)

    async def close(self) -> None:
        return None


def part_of(role: Role, rubrics: tuple[Rubric, ...]) -> tuple[Rubric, Part]:
    """The rubric and its part for `role`. Raises CoachError if none of them has one."""
    for rubric in rubrics:
        part = rubric.part(role)
        if part is not None:
            return rubric, part
    if set(role.produces) <= {"boxed"}:
        for rubric in rubrics:
            if rubric.general is not None:
                return rubric, rubric.general
    known = [part.makes or "/".join(part.roles) or "any that makes no file" for r in rubrics for part in r.parts]
    raise CoachError(
        f"the rubric coach has no rubric for role {role.name!r}, which produces "
        f"{', '.join(role.produces) or 'nothing'}; it knows {', '.join(known)}. Give it a part in a rubric of your own "
        "(coach.rubrics), or take a coach that reads (coach.kind)"
    )


def judge(context: ActionContext, rubric: Rubric, part: Part, coach: str) -> Verdict:
    """The verdict on one action. Its evidence holds the points of every line, and each rule that was applied."""
    execution, evidence = context.action.execution, context.action.evidence
    if execution is not None and execution.outcome == "sandbox-failure":
        reason = "The sandbox failed, which is nobody's fault."
        return Verdict(score=None, reason=reason, coach=coach, missing="sandbox-failure")
    if evidence is None:
        reason = "What the role left behind was not measured."
        return Verdict(score=None, reason=reason, coach=coach, missing="unmeasured")
    points = _points(part, context, evidence)
    total = sum(points.values())
    rules: dict[str, Fact] = {"truncated": True} if context.action.finish_reason == "length" else {}
    if is_victim(context):
        low, high = rubric.caps.victim
        total = min(max(total, low), high)
        rules["upstream_fault"] = True
    else:
        cap = ceiling(context, rubric, part)
        if total > cap or cap == rubric.caps.no_code:
            total = min(total, cap)
            rules["cap"] = cap
        if invents_output(context.action.text, execution):
            rules["invented"] = True
    return Verdict(
        evidence={**points, **rules}, reason=_reason(context, evidence, rules), score=round(total, 2), coach=coach
    )


def ceiling(context: ActionContext, rubric: Rubric, part: Part) -> float:
    """The highest score that the evidence allows an action that is no victim, whoever scores it."""
    execution, evidence, caps = context.action.execution, context.action.evidence, rubric.caps
    nothing = not context.action.text.strip() and execution is None
    found = [10.0]
    if invents_output(context.action.text, execution):
        found.append(caps.invented)
    if (execution is None and part.code) or nothing:
        found.append(caps.no_code)
    if execution is not None and execution.outcome != "ok":
        found.append(caps.crash)
    if evidence is not None:
        found.append(rubric.metric_cap(evidence))
        if not all(evidence.facts.get(name) is True for name in context.role.produces):
            found.append(caps.unusable)
        if not evidence.success and not _ungraded_through_no_fault(context, evidence):
            found.append(caps.undone)
    return min(found)


def is_victim(context: ActionContext) -> bool:
    """Rule 4: it could not have done better than what an upstream role left it."""
    execution = context.action.execution
    if execution is None or context.action.repaired or execution.outcome not in ("ok", "error"):
        return False
    if invents_output(context.action.text, execution):
        return False
    exception = execution.exception or ""
    kind = exception.partition(":")[0].strip()
    missing = [name for name in context.role.needs if name not in context.files and name not in execution.deleted]
    if missing:
        names_one = any(name in exception for name in missing)
        return kind not in OWN_ERRORS and (kind != "FileNotFoundError" or names_one)
    return kind == "ValueError" and not all(context.upstream.values())


def invents_output(text: str, execution: ExecutionResult | None) -> bool:
    """Rule 2: a block or line that is presented as a tool's output holds nothing that the tool printed."""
    printed = f"{execution.stdout}\n{execution.stderr}" if execution is not None else ""
    for found in _SHOWN_OUTPUT.finditer(text):
        shown = [line.strip() for line in (found["block"] or found["line"] or "").splitlines() if line.strip()]
        if shown and not any(line in printed for line in shown):
            return True
    return False


def _points(part: Part, context: ActionContext, evidence: Evidence) -> dict[str, float]:
    execution = context.action.execution
    ran = execution is not None and execution.outcome == "ok"
    said = evidence.facts.get("answered") is True or evidence.facts.get("printed") is True
    facts: dict[str, Fact] = {**evidence.facts, "ran": ran, "said": said, "done": evidence.success}
    points = {line.fact: line.earned(facts.get(line.fact)) for line in part.lines}
    if _ungraded_through_no_fault(context, evidence):
        points |= {line.fact: line.points / 2 for line in part.lines if line.fact in METRIC_LINES}
    return points


def _ungraded_through_no_fault(context: ActionContext, evidence: Evidence) -> bool:
    works = evidence.facts.get("predicts") is True and evidence.facts.get("graded") is False
    return works and "X_test.pkl" not in context.files and "X_test.pkl" not in context.role.produces


def _reason(context: ActionContext, evidence: Evidence, rules: dict[str, Fact]) -> str:
    """One sentence: how the code ended, the first fault, the rule that decided."""
    parts = [_ending(context)]
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
    if "invented" in rules:
        parts.append("it shows tool output that no tool printed")
    if "cap" in rules:
        parts.append(f"at most {rules['cap']:g}")
    if "truncated" in rules:
        parts.append("cut off at the token limit")
    return "; ".join(parts) + "."


def _ending(context: ActionContext) -> str:
    execution = context.action.execution
    if execution is None:
        return "No code block" if context.action.text.strip() or context.role.produces else "Nothing written"
    if execution.outcome == "ok":
        return "Ran to its end"
    if execution.exception is None:
        return f"Stopped: {execution.outcome}"
    exception = re.sub(r"\s+", " ", execution.exception)
    quoted = exception if len(exception) <= QUOTE_LENGTH else exception[:QUOTE_LENGTH] + "..."
    where = f" in line {execution.exception_line}" if execution.exception_line is not None else ""
    return f"Crashed{where} with {quoted}"
