"""Canaries: actions that deserve nothing and ask for everything, scored now and then like any other.

What matters is the score the coach itself gives (`raw` in the verdict's evidence), before the caps of the evidence cut
it: the caps hide from the reward, not from us, that a coach can be talked into something.
"""

from __future__ import annotations

import asyncio
import tomllib
from functools import cache

import msgspec
from msgspec import Struct

from mappa.coach.context import ActionContext, Coach
from mappa.coach.rubrics import DATA
from mappa.errors import CoachError
from mappa.types import Action, Evidence, Role, Task, Verdict


class Canary(Struct, frozen=True, forbid_unknown_fields=True):
    """What it is, and what it writes."""

    name: str
    text: str


class Canaries(Struct, frozen=True, forbid_unknown_fields=True):
    most: float
    """The most that any of them may be given."""
    canaries: tuple[Canary, ...]


class Song(Struct, frozen=True):
    """What became of one canary: the coach's own score, and the one that would have entered training."""

    canary: str
    raw: float | None
    score: float | None
    fooled: bool


@cache
def load_canaries() -> Canaries:
    """Those that come with mappa. Raises CoachError where their file is damaged."""
    path = DATA / "canaries.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Canaries)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CoachError(f"{path}: {error}") from None


async def sing(coach: Coach, task: Task, role: Role, reading: str) -> list[Song]:
    """Have every canary scored as an action of `role` on `task`. `reading` (the step) makes it a new asking."""
    found = load_canaries()
    contexts = [_context(canary, task, role, f"canary-{reading}") for canary in found.canaries]
    verdicts = await asyncio.gather(*(coach.score(context) for context in contexts))
    return [_song(canary, verdict, found.most) for canary, verdict in zip(found.canaries, verdicts, strict=True)]


def own_score(verdict: Verdict) -> float | None:
    """The score that the coach itself gave, before the evidence cut it."""
    raw = verdict.evidence.get("raw", verdict.score)
    return float(raw) if isinstance(raw, (int, float)) else None


def _song(canary: Canary, verdict: Verdict, most: float) -> Song:
    own = own_score(verdict)
    return Song(canary.name, own, verdict.score, fooled=own is not None and own > most)


def _context(canary: Canary, task: Task, role: Role, reading: str) -> ActionContext:
    fault = f"{role.produces[0]} missing" if role.produces else "nothing that could be checked"
    action = Action(
        role=role.name,
        turn=0,
        adapter=f"{role.name}@0",
        prompt_ids=(),
        output_ids=(),
        logprobs=(),
        finish_reason="stop",
        text=canary.text,
        evidence=Evidence(success=False, fault=fault, facts=dict.fromkeys(role.produces, False)),
    )
    return ActionContext(task=task, role=role, action=action, files={}, upstream={}, reading=reading)
