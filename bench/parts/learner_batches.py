"""The batches the learner is measured on. Random tokens: what a step costs does not depend on what they say.

Everything without sharing costs the same per token however many samples there are, so it is measured on a part of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mappa.types import Sample


@dataclass(frozen=True)
class Sizes:
    """How large the batches are, in tokens."""

    beginnings: tuple[int, ...]
    """Per role, the system prompt and worked examples that all its episodes share."""
    own: int
    """What a task adds to it."""
    episodes: int
    actions: tuple[int, int]
    """Shortest and longest action."""
    prefix: int
    suffixes: int
    suffix: int
    some: tuple[int, int]
    """How many episodes of a role, and how many suffixes, are enough for what shares nothing."""
    prompts: int
    """TRL's comparison: prompts, their length, completions of each, and their length."""
    prompt: int
    completions: int
    completion: int
    many_roles: tuple[int, int, int, int]
    """Many roles: roles, what a role's samples share, samples of a role, action."""


# As in the quickstart: prompts of 250 to 400 tokens that differ in their last 20, actions of 70 to 130.
FULL = Sizes((230, 300, 380), 20, 18, (70, 130), 400, 16, 80, (2, 4), 3, 380, 6, 113, (8, 80, 4, 40))
QUICK = Sizes((60, 70, 80), 8, 4, (10, 20), 80, 6, 16, (2, 4), 2, 60, 2, 16, (8, 20, 2, 8))
ROLES = ("data_engineer", "modeler", "analyst")


def team_batch(sizes: Sizes, vocabulary: int) -> list[Sample]:
    """Three roles with their own beginnings, each episode on a task of its own."""
    draw = random.Random(0)
    return [
        sample
        for role, length in zip(ROLES, sizes.beginnings, strict=True)
        for sample in _alike(
            draw, vocabulary, role, length, own=sizes.own, actions=_lengths(draw, sizes.actions, sizes.episodes)
        )
    ]


def star(sizes: Sizes, vocabulary: int) -> list[Sample]:
    """One prefix and many suffixes, all of them action."""
    return _alike(random.Random(1), vocabulary, ROLES[0], sizes.prefix, own=0, actions=[sizes.suffix] * sizes.suffixes)


def group_batch(sizes: Sizes, vocabulary: int) -> list[Sample]:
    """One role, a few prompts, several completions of each."""
    draw = random.Random(2)
    around = (sizes.completion - sizes.completion // 8, sizes.completion + sizes.completion // 8)
    return [
        sample
        for prompt in range(sizes.prompts)
        for sample in _alike(
            draw,
            vocabulary,
            ROLES[0],
            sizes.prompt - prompt,
            own=0,
            actions=_lengths(draw, around, sizes.completions),
            group=str(prompt),
        )
    ]


def crowd(sizes: Sizes, vocabulary: int, *, as_one: bool) -> list[Sample]:
    """Many roles' samples, or the same tokens as one role's. Nothing is shared between roles either way."""
    roles, shared, samples, action = sizes.many_roles
    draw = random.Random(3)
    return [
        sample
        for role in range(roles)
        for sample in _alike(
            draw, vocabulary, "role-0" if as_one else f"role-{role}", shared, own=0, actions=[action] * samples
        )
    ]


def roles_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sample.role for sample in samples))


def first_of_each(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The first `count` samples of every role."""
    return [sample for role in roles_of(samples) for sample in [s for s in samples if s.role == role][:count]]


def unshared(samples: Sequence[Sample]) -> list[Sample]:
    """The same lengths, each sample beginning with a token of its own, so that there is nothing to share."""
    return [replace(sample, tokens=(2 + index, *sample.tokens[1:])) for index, sample in enumerate(samples)]


def action_tokens(samples: Sequence[Sample]) -> int:
    return sum(end - start for sample in samples for start, end in sample.spans)


def _alike(
    draw: random.Random,
    vocabulary: int,
    role: str,
    shared: int,
    *,
    own: int,
    actions: Sequence[int],
    group: str = "",
) -> list[Sample]:
    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, vocabulary) for _ in range(count))

    beginning, start = tokens(shared), shared + own
    return [
        Sample(
            role=role,
            tokens=(*beginning, *tokens(own), *tokens(action)),
            spans=((start, start + action),),
            logprobs=(-11.0,) * action,  # about what a trained model gives to tokens drawn at random
            rewards=(draw.random(),),
            group=group,
        )
        for action in actions
    ]


def _lengths(draw: random.Random, bounds: tuple[int, int], count: int) -> list[int]:
    return [draw.randint(*bounds) for _ in range(count)]
