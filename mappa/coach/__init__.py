"""Who scores an action: `await load_coach(config.coach).score(context)` gives a Verdict.

A coach sees evidence and never measures: outcomes are measured by the tasks' own graders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mappa.coach.budget import Budget
from mappa.coach.context import ActionContext, Coach, Standing, makers
from mappa.coach.ensemble import EnsembleCoach
from mappa.coach.llm import LlmCoach
from mappa.coach.replay import ReplayCoach
from mappa.coach.rewrite import Writer
from mappa.coach.rubric import RubricCoach, part_of
from mappa.coach.rubrics import load_rubric
from mappa.coach.store import CallStore, MemoryStore, Purchase, Spending
from mappa.config import CoachConfig
from mappa.errors import ConfigError
from mappa.types import Episode, Role

__all__ = [
    "ActionContext",
    "Budget",
    "CallStore",
    "Coach",
    "EnsembleCoach",
    "LlmCoach",
    "MemoryStore",
    "Purchase",
    "ReplayCoach",
    "RubricCoach",
    "Spending",
    "Standing",
    "Writer",
    "check_roles",
    "load_coach",
    "makers",
    "writer_of",
]


def load_coach(
    config: CoachConfig,
    *,
    store: CallStore | None = None,
    episodes: Callable[[Path], Iterable[Episode]] | None = None,
) -> Coach:
    """The coach that `config` asks for. Replies are bought once per `store`; `episodes` reads the journal of a replay.

    Raises ConfigError if the config cannot be used (no key, no model, no member), CoachError for a rubric that cannot
    be read.
    """
    kept = store if store is not None else MemoryStore()
    match config.kind:
        case "rubric":
            return RubricCoach(config.rubrics)
        case "llm":
            return LlmCoach(config.chat, budget=budget_of(config, kept), store=kept, rubrics=config.rubrics)
        case "ensemble":
            if not config.member:
                raise ConfigError(
                    "coach.kind='ensemble' needs members beside the rubric; name them in [coach.member.NAME]"
                )
            budget = budget_of(config, kept)  # one for all members
            members: list[Coach] = [RubricCoach(config.rubrics)]
            members += [LlmCoach(c, budget=budget, store=kept, rubrics=config.rubrics) for c in config.member.values()]
            return EnsembleCoach(members, agreement=config.agreement, quorum=config.quorum)
        case "replay":
            if episodes is None or not config.replay:
                raise ConfigError("coach.kind='replay' needs coach.replay, the journal whose verdicts it gives")
            return ReplayCoach(episodes(Path(config.replay)))


def check_roles(config: CoachConfig, roles: Sequence[Role]) -> None:
    """Raises CoachError for a role that nobody could score, before anything is paid for."""
    if config.kind in ("rubric", "ensemble"):
        rubrics = tuple(load_rubric(name) for name in config.rubrics)
        for role in roles:
            part_of(role, rubrics)


def writer_of(coach: Coach) -> Writer | None:
    """Who of a coach can write: itself, or its first member that can."""
    members = coach.members if isinstance(coach, EnsembleCoach) else (coach,)
    return next((member for member in members if isinstance(member, LlmCoach)), None)


def budget_of(config: CoachConfig, store: CallStore) -> Budget:
    """The run's budget, less what earlier processes of the run have spent."""
    return Budget(config.budget_tokens, config.budget_dollars, store.spent())
