"""Packing: nothing is lost, shared prefixes are computed once, every token finds its predecessor."""

from __future__ import annotations

import random

import pytest

from mappa.errors import LearnError
from mappa.learn.packing import MicroBatch, pack, split_by_cost
from mappa.types import Sample

ROLES = ("a", "b", "c")


def random_samples(seed: int, count: int) -> list[Sample]:
    """Roles in any order; prompts that share beginnings of all lengths; some samples equal, some a prefix of others."""
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(5, 50) for _ in range(rng.choice((3, 20, 40)))) for _ in range(4)]
    samples = []
    for index in range(count):
        role, prompt = rng.choice(ROLES), rng.choice(stems)
        for _ in range(rng.randrange(3)):
            prompt += rng.choice(stems)
        prompt += tuple(rng.randrange(5, 8) for _ in range(rng.randrange(1, 3)))
        tokens = prompt + tuple(rng.randrange(5, 7) for _ in range(rng.randrange(1, 6)))
        samples.append(
            Sample(
                role=role,
                tokens=tokens,
                spans=((len(prompt), len(tokens)),),
                logprobs=(-1.0,) * (len(tokens) - len(prompt)),
                rewards=(0.5,),
                source=str(index),
            )
        )
    return samples


def paths(batch: MicroBatch) -> list[list[int]]:
    """The packed rows that each row's token sees, itself last, walked through the plan."""
    starts = [sum(batch.lengths[:node]) for node in range(len(batch.lengths))]
    seen = []
    for node, chain in enumerate(batch.plan().chains):
        before = [row for i in chain[:-1] for row in range(starts[i], starts[i] + batch.lengths[i])]
        for offset in range(batch.lengths[node]):
            seen.append([*before, *range(starts[node], starts[node] + offset + 1)])
    return seen


@pytest.mark.parametrize("seed", range(12))
def test_every_action_token_sees_exactly_its_own_context(seed: int) -> None:
    samples = random_samples(seed, 30)
    batches = pack(samples, ROLES, 400)
    assert sorted(i for batch in batches for i in batch.samples) == list(range(30))
    for batch in batches:
        ids, seen = batch.ids.tolist(), paths(batch)
        scored = list(zip(batch.rows[batch.predictors].tolist(), batch.targets.tolist(), strict=True))
        picks = iter(batch.pick.tolist())
        for index in batch.samples:
            sample = samples[index]
            role = ROLES.index(sample.role)
            (start, end), *_ = sample.spans
            for t in range(start, end):
                row, target = scored[next(picks)]
                assert target == sample.tokens[t]
                assert [ids[r] for r in seen[row]] == list(sample.tokens[:t])
                assert [batch.positions[r].item() for r in seen[row]] == list(range(t))
                assert batch.role_offsets[role] <= row < batch.role_offsets[role + 1]
        assert next(picks, None) is None
        assert batch.tokens <= 440  # the budget is met up to beginnings too short to share


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = tuple(range(5, 105))
    samples = [
        Sample(role="a", tokens=(*prompt, 200 + i, 7), spans=((101, 102),), logprobs=(-1.0,), rewards=(0.5,))
        for i in range(10)
    ]
    (batch,) = pack(samples, ROLES, 1000)
    assert batch.tokens == 100 + 10  # nothing is predicted from an action's last token
    (twice,) = pack(samples + samples, ROLES, 1000)
    assert twice.tokens == batch.tokens and len(twice.pick) == 20 and len(twice.rows) == 10


def test_splitting_among_ranks_loses_nothing_and_balances() -> None:
    samples = random_samples(3, 60)
    for parts in (1, 2, 3, 7):
        shares = split_by_cost(samples, ROLES, parts)
        assert sorted(s.source for share in shares for s in share) == sorted(s.source for s in samples)
        costs = [sum(batch.tokens for batch in pack(share, ROLES, 10_000)) for share in shares]
        assert max(costs) <= sum(costs) / parts + 150
    assert split_by_cost([], ROLES, 2) == [[], []]


def test_a_sample_that_does_not_fit_is_named() -> None:
    sample = random_samples(0, 1)[0]
    with pytest.raises(LearnError, match=r"sample 0: .*tokens_per_micro_batch=2"):
        pack([sample], ROLES, 2)
