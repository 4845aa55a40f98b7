"""process_advantage: against a loop over time steps in fp64, and the same bits however actions are spread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mappa_kernels
from mappa_kernels import process_advantage

BACKENDS = mappa_kernels.available("process_advantage")


def by_loops(scores, offsets, groups, kl, beta, gamma, whiten, n_groups):
    """The definition, one token after the other."""
    tokens = int(offsets[-1])
    returns = torch.full((tokens,), torch.nan, dtype=torch.float64)
    group_of = torch.zeros(tokens, dtype=torch.long)
    for action, score in enumerate(scores.double().tolist()):
        first, stop = int(offsets[action]), int(offsets[action + 1])
        group_of[first:stop] = groups[action]
        if score != score:
            continue
        following = 0.0
        for t in range(stop - 1, first - 1, -1):
            reward = (score if t == stop - 1 else 0.0) - (beta * float(kl[t]) if kl is not None else 0.0)
            following = reward + gamma * following
            returns[t] = following
    advantage, stats = returns.clone(), torch.zeros(n_groups, 3, dtype=torch.float64)
    for group in range(n_groups):
        members = (group_of == group) & ~returns.isnan()
        values = returns[members]
        if len(values):
            spread = (values - values.mean()).square().sum()
            stats[group] = torch.stack((torch.tensor(float(len(values))), values.mean(), spread))
            if whiten:
                std = (spread / len(values)).sqrt()
                advantage[members] = (values - values.mean()) / std if std > 1e-6 else 0.0
    return advantage.nan_to_num(nan=0.0), stats


def batch(lengths: list[int], *, seed: int = 0, groups: int = 3, missing: float = 0.2):
    """scores, action_offsets, groups, kl"""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(lengths), generator=generator)
    scores[torch.rand(len(lengths), generator=generator) < missing] = torch.nan
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    members = torch.randint(0, groups, (len(lengths),), generator=generator)
    return scores, offsets, members, torch.randn(int(offsets[-1]), generator=generator) * 0.3


@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    gamma=st.sampled_from([1.0, 0.97, 0.5, 0.0]),
    beta=st.sampled_from([0.0, 0.01, 1.0]),
    whiten=st.booleans(),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 1000),
)
def test_any_batch_is_as_defined(lengths, gamma, beta, whiten, missing, backend, seed):
    scores, offsets, groups, kl = batch(lengths, seed=seed, missing=missing)
    options = {"beta": beta, "gamma": gamma, "whiten": whiten, "n_groups": 3}
    advantage, stats = process_advantage(scores, offsets, groups, kl=kl, **options, backend=backend)
    expected, expected_stats = by_loops(scores, offsets, groups, kl, beta, gamma, whiten, 3)
    assert advantage.dtype == torch.float32
    assert stats.dtype == torch.float64
    torch.testing.assert_close(stats, expected_stats, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(advantage, expected.float(), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_scores_are_out_of_everything(backend):
    scores, offsets = torch.tensor([0.5, torch.nan, 1.0]), torch.tensor([0, 2, 5, 6])
    advantage, stats = process_advantage(scores, offsets, torch.zeros(3, dtype=torch.long), backend=backend)
    without, same = process_advantage(
        scores[[0, 2]], torch.tensor([0, 2, 3]), torch.zeros(2, dtype=torch.long), backend=backend
    )
    assert advantage[2:5].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(advantage[[0, 1, 5]], without)
    assert torch.equal(stats, same)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whitened_advantages_have_mean_0_and_variance_1(backend):
    scores, offsets, groups, kl = batch([17, 3, 0, 60, 25, 1, 80, 9], missing=0.0)
    advantage, _ = process_advantage(scores, offsets, groups, kl=kl, beta=0.1, backend=backend)
    token_groups = torch.repeat_interleave(groups, offsets.diff())
    for group in token_groups.unique():
        values = advantage[token_groups == group].double()
        assert abs(values.mean().item()) < 1e-6
        assert abs(values.square().mean().item() - 1) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_returns_and_single_tokens_get_zero(backend):
    scores, offsets = torch.tensor([0.1, 0.1, 0.7]), torch.tensor([0, 30, 47, 48])
    advantage, stats = process_advantage(scores, offsets, torch.tensor([0, 0, 1]), backend=backend)
    assert advantage.abs().max() < 1e-6
    assert stats[:, 0].tolist() == [47.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_and_packing_of_the_actions_do_not_change_a_bit(backend):
    scores, offsets, groups, kl = batch([17, 3, 0, 60, 25, 1, 80, 9, 40, 40])
    options = {"beta": 0.1, "gamma": 0.99, "n_groups": 3, "backend": backend}
    advantage, stats = process_advantage(scores, offsets, groups, kl=kl, **options)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(3))
    spans = [slice(int(offsets[a]), int(offsets[a + 1])) for a in order]
    moved = torch.tensor([0, *(span.stop - span.start for span in spans)]).cumsum(0)
    shuffled_kl = torch.cat([kl[span] for span in spans])
    again, same = process_advantage(scores[order], moved, groups[order], kl=shuffled_kl, **options)
    assert torch.equal(again, torch.cat([advantage[span] for span in spans]))
    assert torch.equal(same, stats)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_actions_and_no_tokens(backend):
    nothing = torch.zeros(0)
    advantage, stats = process_advantage(
        nothing, torch.tensor([0]), nothing.long(), kl=nothing, n_groups=2, backend=backend
    )
    assert advantage.shape == (0,)
    assert stats.tolist() == [[0.0] * 3] * 2


def test_both_back_ends_give_the_same_numbers():
    scores, offsets, groups, kl = batch([200] * 160 + [7], missing=0.05)
    results = [process_advantage(scores, offsets, groups, kl=kl, beta=0.05, backend=name) for name in BACKENDS]
    for advantage, stats in results:
        torch.testing.assert_close(advantage, results[0][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(stats, results[0][1], rtol=1e-12, atol=1e-12)


WORKER = """
import sys, torch, torch.distributed as dist
from mappa_kernels import process_advantage
rank, world, folder, backend = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
scores, offsets, groups, kl = torch.load(f"{folder}/batch.pt")
mine = range(rank, len(scores), world)  # dealt out like cards
spans = [slice(int(offsets[a]), int(offsets[a + 1])) for a in mine]
moved = torch.tensor([0, *(s.stop - s.start for s in spans)]).cumsum(0)
part = torch.cat([kl[s] for s in spans])
advantage, stats = process_advantage(
    scores[list(mine)], moved, groups[list(mine)], kl=part, beta=0.1, process_group=dist.group.WORLD, backend=backend
)
torch.save((advantage, stats, spans), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_two_ranks_give_the_bits_of_one(backend, tmp_path: Path, package_environment):
    scores, offsets, groups, kl = batch([17, 3, 0, 60, 25, 1, 80, 9, 40], missing=0.2)
    torch.save((scores, offsets, groups, kl), tmp_path / "batch.pt")
    whole, stats = process_advantage(scores, offsets, groups, kl=kl, beta=0.1, backend=backend)
    commands = [[sys.executable, "-c", WORKER, str(rank), "2", str(tmp_path), backend] for rank in range(2)]
    ranks = [subprocess.Popen(command, env=package_environment) for command in commands]
    assert [rank.wait(timeout=280) for rank in ranks] == [0, 0]
    for rank in range(2):
        advantage, merged, spans = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert torch.equal(merged, stats)
        assert torch.equal(advantage, torch.cat([whole[span] for span in spans]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_call_twice_gives_the_same_bits(backend):
    scores, offsets, groups, kl = batch([50] * 40)
    first, second = (process_advantage(scores, offsets, groups, kl=kl, beta=0.1, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_scores_carry_no_gradient_and_stay_as_they_were():
    scores, offsets, groups, kl = batch([5, 6])
    before = (scores.clone(), kl.clone())
    advantage, _ = process_advantage(scores.requires_grad_(), offsets, groups, kl=kl, beta=0.1)
    assert not advantage.requires_grad
    torch.testing.assert_close((scores.detach(), kl), before, equal_nan=True)
