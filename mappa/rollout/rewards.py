"""What an action is rewarded with: its own score, which is the method, or what the method is compared with."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import fmean

from mappa.config import RewardKind
from mappa.rollout.stage import derive_seed
from mappa.types import Action, Episode

Offsets = Mapping[tuple[str, str], float]
"""By how much the scores of a role on a kind of task are too high, 0 to 10."""
_MISSING = math.nan


def rewards_of(episodes: Sequence[Episode], kind: RewardKind, offsets: Offsets | None = None) -> list[list[float]]:
    """One number from 0 to 1 per action of each episode of a step; NaN where there is none, which the learner masks.

    process     its score / 10, less the offset of its role and kind of task where there is one
    outcome     1 where the task's own grader calls the episode a success, else 0: no coach has a part in it
    team        the mean of what the scored actions of its episode would get
    shuffled    what another action of its role got, drawn without replacement: a control, which has the scores'
                distribution and no information
    """
    if kind == "outcome":
        return [[_outcome(episode)] * len(episode.actions) for episode in episodes]
    less = offsets or {}
    own = [[_score(a, less.get((a.role, episode.kind), 0.0)) for a in episode.actions] for episode in episodes]
    if kind == "team":
        return [[_mean(values)] * len(values) for values in own]
    return _shuffled(episodes, own) if kind == "shuffled" else own


def _outcome(episode: Episode) -> float:
    return _MISSING if episode.outcome is None else float(episode.outcome.success)


def _score(action: Action, offset: float) -> float:
    score = action.verdict.score if action.verdict is not None else None
    return _MISSING if score is None else (score - offset) / 10


def _mean(values: Sequence[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return fmean(found) if found else _MISSING


def _shuffled(episodes: Sequence[Episode], own: Sequence[Sequence[float]]) -> list[list[float]]:
    """Depends on the episodes alone, so that a resumed or replayed run draws the same. Missing ones stay missing."""
    drawn = [list(values) for values in own]
    places: dict[str, list[tuple[int, int]]] = {}
    for index, episode in enumerate(episodes):
        for turn, action in enumerate(episode.actions):
            if not math.isnan(own[index][turn]):
                places.setdefault(action.role, []).append((index, turn))
    for role, mine in places.items():
        values = [own[index][turn] for index, turn in mine]
        random.Random(derive_seed(role, *(episode.seed for episode in episodes))).shuffle(values)
        for (index, turn), value in zip(mine, values, strict=True):
            drawn[index][turn] = value
    return drawn
