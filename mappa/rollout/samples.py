"""Episodes to samples: every action that can be learned from becomes one sample with its exact context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from mappa.coach.rewrite import Rewrite
from mappa.types import Action, Episode, Sample


def samples_of(
    episodes: Sequence[Episode], *, group_by: str, offsets: Mapping[tuple[str, str], float] | None = None
) -> list[Sample]:
    """One sample per action that is learned from (see `learned_actions`).

    Its tokens are the context the model saw and what it wrote, as they were. The reward is score / 10, the score less
    the offset of its role and kind of task where there is one; where the coach gave none it is NaN, which the learner
    masks. Actions of one group are normalised together. The sample's role is the name of the adapter, which several
    roles of a system may share. An outside model's action has no tokens to learn.
    """
    less = offsets or {}
    return [
        _sample(episode, action, group_by, less.get((action.role, episode.kind), 0.0))
        for episode in episodes
        for action in learned_actions(episode)
    ]


def supervised_of(rewrites: Iterable[Rewrite], weight: float) -> list[Sample]:
    """One sample per corrected action, in the context of the action in whose place it stands."""
    return [
        Sample(
            role=rewrite.adapter,
            tokens=rewrite.prompt_ids + rewrite.output_ids,
            spans=((len(rewrite.prompt_ids), len(rewrite.prompt_ids) + len(rewrite.output_ids)),),
            logprobs=(),
            advantages=(weight,),
            supervised=True,
            source=f"{rewrite.source} rewritten",
        )
        for rewrite in rewrites
    ]


def learned_actions(episode: Episode) -> Iterable[Action]:
    """Those of an episode that came to its end; of one that was cut, the scored ones; of a lost one none. What an
    outside model wrote is never learned from."""
    if episode.error is not None:
        return ()
    own = (action for action in episode.actions if action.output_ids)
    return (action for action in own if not episode.cut or action.verdict is not None)


def staleness(episode: Episode, action: Action) -> int:
    """How many versions the learner was ahead of the action's sampler when it learned from it."""
    return episode.step - 1 - version(action)


def version(action: Action) -> int:
    """`modeler@12` -> 12"""
    return int(action.adapter.rpartition("@")[2])


def _sample(episode: Episode, action: Action, group_by: str, offset: float) -> Sample:
    score = action.verdict.score if action.verdict is not None else None
    start = len(action.prompt_ids)
    tokens = action.prompt_ids + action.output_ids
    return Sample(
        role=action.adapter.rpartition("@")[0],
        tokens=tokens,
        spans=((start, len(tokens)),),
        logprobs=action.logprobs,
        rewards=(math.nan if score is None else (score - offset) / 10,),
        group={"role": action.role, "role-kind": f"{action.role}/{episode.kind}", "all": ""}[group_by],
        truncated=action.finish_reason == "length",
        versions=(version(action),),
        source=f"{episode.id}/{action.role}/{action.turn}",
    )
