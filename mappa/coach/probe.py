"""What a coach is asked for its own sake: canaries, frozen anchors, repeats of a score.

Probes are asked after a step's review, while the next step rolls out, and taken in by the next review: nobody waits for
them. Each is a reading of its own, so that no cache answers it; asked again after an interruption it is bought once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

from msgspec import Struct, field
from msgspec.structs import replace

from mappa.coach.canary import Song, own_score, sing
from mappa.coach.context import ActionContext, Coach
from mappa.coach.rewrite import Rewrite
from mappa.config import CoachConfig
from mappa.types import Role, Task

ANCHORS = 24


class Probed(Struct, frozen=True, kw_only=True):
    """Answers. Scores are the coach's own, before the evidence cut them; what is missing is left out."""

    songs: tuple[Song, ...] = ()
    anchors: Mapping[str, float] = field(default_factory=dict)
    """By the anchor's name."""
    repeats: tuple[tuple[float, float], ...] = ()
    """Two further scores of one action."""
    rewrites: tuple[Rewrite, ...] = ()
    """Corrected actions that did better than what they replace."""


class Probe(Struct, frozen=True, kw_only=True):
    """What may be asked after a step; `step` is 0 at the start of a run."""

    step: int
    task: Task
    """That the canaries are scored on, as actions of each role in turn."""
    roles: Sequence[Role]
    anchors: Mapping[str, ActionContext] = field(default_factory=dict)
    actions: Mapping[str, ActionContext] = field(default_factory=dict)
    """The step's measured actions by name, of which some are scored again."""


def anchors_of(actions: Mapping[str, ActionContext]) -> dict[str, ActionContext]:
    """At most so many of a step's measured actions, taken from each role and kind of task in turn."""
    strata: dict[tuple[str, str], list[str]] = {}
    for name, context in actions.items():
        strata.setdefault((context.role.name, context.task.kind), []).append(name)
    names = chain.from_iterable(zip_longest(*(strata[place] for place in sorted(strata))))
    return {name: actions[name] for name in [name for name in names if name is not None][:ANCHORS]}


async def probe(coach: Coach, config: CoachConfig, what: Probe) -> Probed:
    """Ask what is due. Raises CoachError as the coach does."""
    singing = what.roles[what.step // max(1, config.canary_every) % len(what.roles)]
    anchors = what.anchors if _due(what.step - 1, config.anchor_every) else {}
    drawn = {name: context for name, context in what.actions.items() if _drawn(name, config.repeat)}
    songs, read, repeats = await asyncio.gather(
        sing(coach, what.task, singing, str(what.step)) if _due(what.step, config.canary_every) else _none(),
        _read(coach, anchors, f"anchor-{what.step}"),
        _repeat(coach, drawn),
    )
    return Probed(songs=tuple(songs), anchors=read, repeats=tuple(repeats))


async def _none() -> list[Song]:
    return []


def _due(step: int, every: int) -> bool:
    return every > 0 and step >= 0 and step % every == 0


def _drawn(name: str, share: float) -> bool:
    """The same actions in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") < share * 2**32


async def _read(coach: Coach, contexts: Mapping[str, ActionContext], reading: str) -> dict[str, float]:
    verdicts = await asyncio.gather(*(coach.score(replace(c, reading=reading)) for c in contexts.values()))
    own = {name: own_score(verdict) for name, verdict in zip(contexts, verdicts, strict=True)}
    return {name: score for name, score in own.items() if score is not None}


async def _repeat(coach: Coach, contexts: Mapping[str, ActionContext]) -> list[tuple[float, float]]:
    """Both readings are new: the first score was given with all that the role saw, which a journal does not keep."""
    first, second = await asyncio.gather(*(_read(coach, contexts, f"repeat-{n}") for n in (1, 2)))
    return [(first[name], second[name]) for name in first if name in second]
