"""Episodes to samples: every action that can be learned from becomes one sample with its exact context."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mappa.types import Action, Episode, Sample


def samples_of(episodes: Sequence[Episode], *, group_by: str) -> list[Sample]:
    """One sample per action of every episode that was not lost.

    Its tokens are the context the model saw and what it wrote, as they were. The reward is score / 10; where the coach
    gave none it is NaN, which the learner masks. Actions of one group are normalised together. The sample's role is the
    name of the adapter, which several roles of a system may share. An outside model's action has no tokens to learn.
    """
    return [
        _sample(episode, action, group_by)
        for episode in episodes
        if episode.error is None
        for action in episode.actions
        if action.output_ids
    ]


def _sample(episode: Episode, action: Action, group_by: str) -> Sample:
    score = action.verdict.score if action.verdict is not None else None
    start = len(action.prompt_ids)
    tokens = action.prompt_ids + action.output_ids
    adapter, _, version = action.adapter.rpartition("@")
    return Sample(
        role=adapter,
        tokens=tokens,
        spans=((start, len(tokens)),),
        logprobs=action.logprobs,
        rewards=(math.nan if score is None else score / 10,),
        group={"role": action.role, "role-kind": f"{action.role}/{episode.kind}", "all": ""}[group_by],
        truncated=action.finish_reason == "length",
        versions=(int(version),),
        source=f"{episode.id}/{action.role}/{action.turn}",
    )
