# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""`process_advantage` on a GPU: one program per action scans its tokens from the end, block after block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def compose(a_later, b_later, a, b):
    """x -> a x + b after x -> a_later x + b_later: the composition a reverse scan runs on."""
    return a_later * a, b_later * a + b


@triton.jit
def action_returns_kernel(
    scores, offsets, kl, options, returns, stats, HAS_KL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """fp64 returns of one action's tokens, and their (n, mean, M2), blocks merged by Chan's rule."""
    beta, gamma = tl.load(options), tl.load(options + 1)  # fp64: a plain argument would arrive as fp32
    action = tl.program_id(0)
    first, stop = tl.load(offsets + action), tl.load(offsets + action + 1)
    score = tl.load(scores + action)
    lane = tl.arange(0, BLOCK)
    following = score - score  # NaN where there is no score: so is every return
    count = tl.full((), 0.0, tl.float64)
    mean, squares = count, count
    for block in range(tl.cdiv(stop - first, BLOCK)):
        # Lane 0 is the last token, so that the scan runs forward and a block's tokens depend on their place alone.
        t = stop - 1 - block * BLOCK - lane
        inside = t >= first
        reward = tl.where(t == stop - 1, score, 0.0)
        if HAS_KL:
            reward -= beta * tl.load(kl + t, mask=inside, other=0.0).to(tl.float64)
        a = tl.where(inside, gamma, 1.0)
        b = tl.where(inside, reward, 0.0)
        scale, value = tl.associative_scan((a, b), 0, compose)
        value += scale * following
        tl.store(returns + t, value, mask=inside)
        following = tl.sum(tl.where(lane == BLOCK - 1, value, 0.0), 0)
        size = tl.sum(inside.to(tl.float64), 0)
        centre = tl.sum(tl.where(inside, value, 0.0), 0) / size
        spread = tl.where(inside, value - centre, 0.0)
        shift, total = centre - mean, count + size
        squares += tl.sum(spread * spread, 0) + shift * shift * count * size / total
        mean += shift * size / total
        count = total
    scored = (score == score) & (stop > first)
    tl.store(stats + action * 3, tl.where(scored, count, 0.0))
    tl.store(stats + action * 3 + 1, tl.where(scored, mean, 0.0))
    tl.store(stats + action * 3 + 2, tl.where(scored, squares, 0.0))


@triton.jit
def whiten_kernel(returns, offsets, groups, stats, options, advantage, WHITEN: tl.constexpr, BLOCK: tl.constexpr):
    """(return - mean) / std of the action's group, fp32; 0 where there is no score."""
    action = tl.program_id(0)
    first, stop = tl.load(offsets + action), tl.load(offsets + action + 1)
    row = stats + tl.load(groups + action) * 3
    count, mean, squares = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    std = tl.maximum(tl.sqrt(squares / tl.maximum(count, 1.0)), tl.load(options))
    for block in range(tl.cdiv(stop - first, BLOCK)):
        t = first + block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(returns + t, mask=t < stop, other=0.0)
        scored = value == value
        if WHITEN:
            value = (value - mean) / std
        tl.store(advantage + t, tl.where(scored, value, 0.0).to(tl.float32), mask=t < stop)


BLOCK = 512


def action_returns(
    scores: Tensor, offsets: Tensor, kl: Tensor | None, beta: float, gamma: float, tokens: int
) -> tuple[Tensor, Tensor]:
    """fp64 [T] returns, NaN where unscored, and fp64 [A, 3] their (n, mean, M2) by action."""
    returns = torch.empty(tokens, dtype=torch.float64, device=scores.device)
    stats = torch.zeros(len(scores), 3, dtype=torch.float64, device=scores.device)
    if len(scores):
        with torch.cuda.device_of(scores):
            action_returns_kernel[(len(scores),)](
                scores.detach().double().contiguous(),
                offsets.long(),
                returns if kl is None else kl.detach().contiguous(),
                torch.tensor([beta, gamma], dtype=torch.float64, device=scores.device),
                returns,
                stats,
                HAS_KL=kl is not None,
                BLOCK=BLOCK,
            )
    return returns, stats


def whiten(
    returns: Tensor, offsets: Tensor, groups: Tensor, stats: Tensor, smallest_std: float, *, whiten: bool
) -> Tensor:
    """fp32 [T] advantages."""
    advantage = torch.empty(len(returns), dtype=torch.float32, device=returns.device)
    if len(groups):
        options = torch.tensor([smallest_std], dtype=torch.float64, device=returns.device)
        with torch.cuda.device_of(returns):
            whiten_kernel[(len(groups),)](
                returns, offsets.long(), groups.long().contiguous(), stats, options, advantage,
                WHITEN=whiten, BLOCK=BLOCK,
            )  # fmt: skip
    return advantage
