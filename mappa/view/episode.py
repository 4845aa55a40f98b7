"""One episode: its roles in order, what each wrote, what came of it, and how that was judged."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach.matching import quality_of
from mappa.journal import Record, read_record
from mappa.journal.codec import Entry
from mappa.types import Evidence, ExecutionResult, Outcome, Verdict
from mappa.view.catalogue import Catalogue
from mappa.view.suspects import suspicion

LONGEST = 100_000
"""Characters of one text that are shown."""
SIBLINGS = 200


class Sibling(Struct, frozen=True):
    """Another episode on the same task."""

    id: str
    phase: str
    step: int
    success: bool | None


class ActionPage(Struct, frozen=True, kw_only=True):
    """One action, long texts cut."""

    ordinal: int
    role: str
    turn: int
    adapter: str
    context: int
    """Tokens it saw."""
    tokens: int
    """Tokens it wrote."""
    finish: str
    repaired: bool
    text: str
    execution: ExecutionResult | None
    evidence: Evidence | None
    quality: float | None
    verdict: Verdict | None
    advantage: float | None
    """Mean over its tokens as the learner had them; None where it has not learned from it."""
    kl: float | None
    """Mean log pi - log pi_ref over its tokens, nats."""
    entropy: float | None
    """The policy's, mean over its tokens, nats."""
    suspect: str | None
    used: list[str]
    """Files that were there before it and that its code names."""
    made: list[str]


class EpisodePage(Struct, frozen=True, kw_only=True):
    id: str
    task: str
    kind: str
    phase: str
    step: int
    seed: str
    """As text: a page's numbers hold 53 bits, a seed has 63."""
    state: Literal["running", "done", "cut", "lost"]
    error: str | None
    outcome: Outcome | None
    actions: list[ActionPage]
    siblings: list[Sibling]


def episode_page(catalogue: Catalogue, id: str) -> EpisodePage:
    """Raises KeyError for an episode that the journal has not."""
    phase, record = read_record(catalogue.path, id)
    episode = record.episode
    return EpisodePage(
        id=id,
        task=episode.task,
        kind=episode.kind,
        phase=phase,
        step=episode.step,
        seed=str(episode.seed),
        state=record.state,
        error=None if episode.error is None else cut(episode.error),
        outcome=episode.outcome,
        actions=_actions(catalogue, record),
        siblings=_siblings(catalogue, episode.task),
    )


def cut(text: str) -> str:
    """At most LONGEST characters of it, and how many more there are."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n[{len(text) - LONGEST} more characters]"


def _actions(catalogue: Catalogue, record: Record) -> list[ActionPage]:
    pages: list[ActionPage] = []
    there: set[str] = set()
    for ordinal, entry in record.entries.items():
        files = set(entry.observation.files) if entry.observation is not None else set()
        execution = entry.action.execution
        made = {*execution.created, *execution.changed} if execution is not None else set()
        known = (there or files) - (made if not there else set())  # before the first action: what it did not make
        learned = _learned(catalogue, f"{record.episode.id}/{entry.action.role}/{entry.action.turn}")
        pages.append(_action(ordinal, entry, learned, used=_named(known, entry), made=sorted(made)))
        there = files | there
    return pages


def _action(
    ordinal: int, entry: Entry, learned: dict[str, float | None], *, used: list[str], made: list[str]
) -> ActionPage:
    action = entry.action
    score = None if action.verdict is None else action.verdict.score
    told = None if action.verdict is None else action.verdict.evidence
    return ActionPage(
        ordinal=ordinal,
        role=action.role,
        turn=action.turn,
        adapter=action.adapter,
        context=len(action.prompt_ids),
        tokens=len(action.output_ids),
        finish=action.finish_reason,
        repaired=action.repaired,
        text=cut(action.text),
        execution=None if action.execution is None else _short(action.execution),
        evidence=action.evidence,
        quality=None if action.evidence is None else quality_of(action.evidence),
        verdict=action.verdict,
        **learned,
        suspect=suspicion(action.text, told, score),
        used=used,
        made=made,
    )


def _short(execution: ExecutionResult) -> ExecutionResult:
    exception = None if execution.exception is None else cut(execution.exception)
    return replace(execution, stdout=cut(execution.stdout), stderr=cut(execution.stderr), exception=exception)


def _named(files: set[str], entry: Entry) -> list[str]:
    """Files that its code, or else its text, names."""
    code = entry.observation.code if entry.observation is not None else None
    words = set(re.findall(r"[\w./-]+", code or entry.action.text))
    return sorted(files & words)


def _learned(catalogue: Catalogue, source: str) -> dict[str, float | None]:
    """What the learner made of an action, by field."""
    names = ("advantage", "kl", "entropy")
    found = catalogue.rows(f"select {', '.join(names)} from learned where source = ?", (source,))
    return dict(zip(names, found[0], strict=True)) if found else dict.fromkeys(names)


def _siblings(catalogue: Catalogue, task: str) -> list[Sibling]:
    """Before training, after it, then by step."""
    rows = catalogue.rows(
        "select id, phase, step, success from episodes where task = ? "
        "order by phase = 'base' desc, phase = 'trained' desc, step desc, id limit ?",
        (task, SIBLINGS),
    )
    return [Sibling(id, phase, step, None if success is None else bool(success)) for id, phase, step, success in rows]
