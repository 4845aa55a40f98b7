"""Blame, once the episode is over: who made what, who used it, and whose fault a failure was in the end.

An action is scored when it is done, so a fault that shows downstream only (a missing file, columns that differ, a file
overwritten) reaches its victim first. `retrospect` walks back from every action that failed, over the files it used and
the messages it read, to the action that is at fault itself:

- Its own fault: it wrote no code, its code does not parse, uses what is not there, was stopped by a limit, or died in a
  way that its inputs do not explain; it showed output that no tool printed.
- A file it needs is missing: the fault of who deleted it, else of the role that must produce it.
- A file it used was made by an action that itself failed its checks, or changed by a role that had no business to: that
  action's fault, or of whoever was to blame for it in turn.
- It has no files, and a message it read came from an action that failed its checks: likewise.

Who is found guilty gets at most the rubric's `guilty` cap; a victim gets at least its lower `victim` bound. All others
keep their scores. Nothing is random and nothing is asked: any coach's verdicts can be put right this way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from mappa.coach.context import ActionContext, makers
from mappa.coach.rubric import OWN_ERRORS, invents_output
from mappa.coach.rubrics import Rubric
from mappa.types import Verdict

INPUT_ERRORS = ("ValueError", "KeyError", "TypeError", "IndexError", "EOFError", "UnpicklingError")
"""How code dies of what it was given."""


def retrospect(contexts: Sequence[ActionContext], verdicts: Sequence[Verdict], rubric: Rubric) -> list[Verdict]:
    """The verdicts on one episode's actions, in order, with credit reassigned; missing ones stay missing."""
    guilt: dict[int, list[int]] = {}
    victims: set[int] = set()
    for place, context in enumerate(contexts):
        if failed(context):
            roots = blame(contexts, place)
            for root in roots - {place}:
                guilty = guilt.setdefault(root, [])
                guilty.append(place)
            if roots and place not in roots:
                victims.add(place)
    return [
        _guilty(verdict, contexts, guilt[place], rubric)
        if place in guilt
        else _victim(verdict, rubric)
        if place in victims
        else verdict
        for place, verdict in enumerate(verdicts)
    ]


def failed(context: ActionContext) -> bool:
    return context.action.evidence is not None and not context.action.evidence.success


def blame(contexts: Sequence[ActionContext], place: int) -> set[int]:
    """The places of the actions that are at fault for the failure at `place`: itself, or earlier ones."""
    if _own_fault(contexts[place]):
        return {place}
    suspects = _suspects(contexts, place)
    return {root for suspect in suspects for root in blame(contexts, suspect)} or {place}


def uses(contexts: Sequence[ActionContext], place: int) -> set[str]:
    """Files that the action at `place` worked from: those its role needs, and those of other roles that it names."""
    context = contexts[place]
    handed_on = {name for other in contexts[:place] for name in other.role.produces}
    handed_on |= set(makers(other.action for other in contexts[:place]))
    named = {name for name in handed_on if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", context.action.text)}
    return (set(context.role.needs) | named) - set(context.role.produces)


def _own_fault(context: ActionContext) -> bool:
    """It failed in a way that nothing it was given can explain."""
    action, execution = context.action, context.action.execution
    if invents_output(action.text, execution) or action.repaired:
        return True
    if execution is None:
        return bool(context.role.produces) or not action.text.strip()
    if execution.outcome not in ("ok", "error"):
        return True
    kind = (execution.exception or "").partition(":")[0].strip().rpartition(".")[2]
    if kind in OWN_ERRORS:
        return True
    if kind == "FileNotFoundError":
        return not any(name in (execution.exception or "") for name in context.role.needs)
    return execution.outcome == "error" and kind not in INPUT_ERRORS


def _suspects(contexts: Sequence[ActionContext], place: int) -> set[int]:
    """Earlier actions that left this one something it could not work from."""
    context = contexts[place]
    earlier = [other.action for other in contexts[:place]]
    made = makers(earlier)
    found: set[int] = set()
    used = uses(contexts, place)
    for name in used:
        execution = context.action.execution
        owners = [p for p in range(place) if name in contexts[p].role.produces]
        maker = made.get(name)
        if maker is None:
            if execution is None or name not in execution.deleted:
                deleters = [p for p, a in enumerate(earlier) if a.execution and name in a.execution.deleted]
                found |= set(deleters[-1:] or owners[-1:])
        elif owners and contexts[maker].role.name not in {contexts[p].role.name for p in owners}:
            found.add(maker)  # overwritten by a role whose file it is not
        elif failed(contexts[maker]):
            found.add(maker)
    if not used:
        others = [p for p in range(place) if contexts[p].role.name != context.role.name]
        found |= {p for p in others if failed(contexts[p])}
    return found


def _guilty(verdict: Verdict, contexts: Sequence[ActionContext], victims: Sequence[int], rubric: Rubric) -> Verdict:
    if verdict.score is None:
        return verdict
    failures = ", ".join(f"{contexts[p].action.role}/{contexts[p].action.turn}" for p in victims)
    return replace(
        verdict,
        score=min(verdict.score, rubric.caps.guilty),
        evidence={**verdict.evidence, "before": verdict.score, "caused the failure of": failures},
        reason=f"{verdict.reason.rstrip('.')}; in retrospect the cause of the failure of {failures}.",
    )


def _victim(verdict: Verdict, rubric: Rubric) -> Verdict:
    low = rubric.caps.victim[0]
    if verdict.score is None or verdict.score >= low:
        return verdict
    return replace(
        verdict,
        score=low,
        evidence={**verdict.evidence, "before": verdict.score},
        reason=f"{verdict.reason.rstrip('.')}; in retrospect not its own fault.",
    )
