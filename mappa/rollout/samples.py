"""Episodes to samples: every action that can be learned from becomes one sample with its exact context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mappa.coach.rewrite import Rewrite
from mappa.config import GroupBy, RewardKind
from mappa.rollout.rewards import Offsets, rewards_of
from mappa.types import Action, Episode, Sample


def samples_of(
    episodes: Sequence[Episode], *, group_by: GroupBy, reward: RewardKind = "process", offsets: Offsets | None = None
) -> list[Sample]:
    """One sample per action that is learned from (see `learned_actions`).

    Its tokens are the context the model saw and what it wrote, as they were; its reward is what rewards.py says, NaN
    where there is none, which the learner masks. Actions of one group are normalised together. The sample's role is the
    name of the adapter, which several roles of a system may share. An outside model's action has no tokens to learn.
    """
    kept = [episode for episode in episodes if episode.error is None]
    return [
        _sample(episode, action, group_by, value)
        for episode, values in zip(kept, rewards_of(kept, reward, offsets), strict=True)
        for action, value in zip(episode.actions, values, strict=True)
        if _is_learned(episode, action)
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
    return (action for action in episode.actions if _is_learned(episode, action))


def staleness(episode: Episode, action: Action) -> int:
    """How many versions the learner was ahead of the action's sampler when it learned from it."""
    return episode.step - 1 - version(action)


def version(action: Action) -> int:
    """`modeler@12` -> 12"""
    return int(action.adapter.rpartition("@")[2])


def _is_learned(episode: Episode, action: Action) -> bool:
    return bool(action.output_ids) and (not episode.cut or action.verdict is not None)


def _sample(episode: Episode, action: Action, group_by: GroupBy, reward: float) -> Sample:
    start = len(action.prompt_ids)
    tokens = action.prompt_ids + action.output_ids
    return Sample(
        role=action.adapter.rpartition("@")[0],
        tokens=tokens,
        spans=((start, len(tokens)),),
        logprobs=action.logprobs,
        rewards=(reward,),
        group=_group(episode, action, group_by),
        truncated=action.finish_reason == "length",
        versions=(version(action),),
        source=f"{episode.id}/{action.role}/{action.turn}",
    )


def _group(episode: Episode, action: Action, group_by: GroupBy) -> str:
    """`modeler`, `modeler/1`, `modeler/regression`, `modeler/Boston`, `modeler/Boston/1`; nothing where all are one."""
    parts: dict[str, object] = {
        "role": action.role, "turn": action.turn, "kind": episode.kind, "task": episode.task
    }  # fmt: skip
    return "/".join(str(parts[name]) for name in group_by.split("-") if name in parts)
