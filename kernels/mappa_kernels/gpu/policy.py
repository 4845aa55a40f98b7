# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""`policy_loss` on a GPU: value, gradient and metrics of a block of tokens in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def policy_kernel(
    logprob, behaviour, advantage, old, mask, entropy, groups, sequence_ratio, gradient, sums,
    tokens, low, high, cap, largest, n_groups,
    KIND: tl.constexpr, HAS_OLD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """gradient [T]: d(-value)/d logprob. sums [blocks, n_groups, 7]: value, ratio, clipped, kl, entropy, truncated, n.

    KIND: 0 ppo, 1 reinforce, 2 cispo, 3 gspo, whose log-ratio is `sequence_ratio`.
    """
    block = tl.program_id(0)
    t = block * BLOCK + tl.arange(0, BLOCK)
    inside = t < tokens
    kept = tl.load(mask + t, mask=inside, other=0) != 0
    x = tl.load(logprob + t, mask=kept, other=0.0)
    before = tl.load(behaviour + t, mask=kept, other=0.0)
    a = tl.load(advantage + t, mask=kept, other=0.0)
    learner = x
    anchor = before
    if HAS_OLD:
        learner = tl.load(old + t, mask=kept, other=0.0)
        anchor = learner
    elif HAS_CAP:
        anchor = x
    weight = tl.full((BLOCK,), 1.0, tl.float32)
    truncated = tl.zeros((BLOCK,), tl.float32)
    if HAS_CAP:
        free = tl.exp(tl.minimum(learner - before, largest))
        weight = tl.minimum(free, cap)
        truncated = tl.where(free > cap, 1.0, 0.0)
    log_ratio = x - anchor
    if KIND == 3:
        log_ratio = tl.load(sequence_ratio + t, mask=kept, other=0.0)
    limited_log = tl.minimum(tl.maximum(log_ratio, -largest), largest)
    ratio = tl.exp(limited_log)
    bound = tl.minimum(tl.maximum(ratio, low), high)
    if KIND == 1:
        value, slope, clipped = x * a, a, tl.zeros((BLOCK,), tl.float32)
    elif KIND == 2:
        value, slope, clipped = bound * x * a, bound * a, tl.where(bound != ratio, 1.0, 0.0)
    else:
        clipped = tl.where(bound * a < ratio * a, 1.0, 0.0)
        value = tl.minimum(ratio * a, bound * a)
        slope = tl.where((clipped > 0) | (limited_log != log_ratio), 0.0, ratio * a)
    tl.store(gradient + t, tl.where(kept, -weight * slope, 0.0), mask=inside)

    difference = tl.minimum(tl.maximum(x - before, -largest), largest)
    kl = tl.exp(difference) - 1.0 - difference
    spread = -x
    if HAS_ENTROPY:
        spread = tl.load(entropy + t, mask=kept, other=0.0)
    group = tl.load(groups + t, mask=kept, other=-1)
    for g in range(n_groups):
        own = kept & (group == g)
        at = sums + (block.to(tl.int64) * n_groups + g) * 7
        tl.store(at, tl.sum(tl.where(own, weight * value, 0.0), 0))
        tl.store(at + 1, tl.sum(tl.where(own, ratio, 0.0), 0))
        tl.store(at + 2, tl.sum(tl.where(own, clipped, 0.0), 0))
        tl.store(at + 3, tl.sum(tl.where(own, kl, 0.0), 0))
        tl.store(at + 4, tl.sum(tl.where(own, spread, 0.0), 0))
        tl.store(at + 5, tl.sum(tl.where(own, truncated, 0.0), 0))
        tl.store(at + 6, tl.sum(own.to(tl.float32), 0))


KINDS = {"ppo": 0, "reinforce": 1, "cispo": 2, "gspo": 3}


def run(
    logprob: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    kind: str,
    clip: tuple[float, float],
    old: Tensor | None,
    cap: float | None,
    mask: Tensor,
    entropy: Tensor | None,
    groups: Tensor | None,
    n_groups: int,
    sequence_ratio: Tensor | None,
    largest: float,
) -> tuple[Tensor, Tensor]:
    """fp32 [T] gradient of -sum(value) in logprob, and [n_groups, 7] sums (see the kernel), blocks added in order."""
    tokens, device = len(logprob), logprob.device
    gradient = torch.empty(tokens, dtype=torch.float32, device=device)
    blocks = max(1, triton.cdiv(tokens, BLOCK))
    sums = torch.zeros(blocks, n_groups, 7, dtype=torch.float32, device=device)
    members = torch.zeros(tokens, dtype=torch.int64, device=device) if groups is None else groups.long().contiguous()

    def floats(values: Tensor | None) -> Tensor:
        return logprob.detach() if values is None else values.detach().float().contiguous()

    if tokens and n_groups:
        with torch.cuda.device_of(logprob):
            policy_kernel[(blocks,)](
                logprob.detach().float().contiguous(), floats(behaviour), floats(advantage), floats(old),
                mask.to(torch.int8), floats(entropy), members, floats(sequence_ratio), gradient, sums,
                tokens, clip[0], clip[1], 0.0 if cap is None else cap, largest, n_groups,
                KIND=KINDS[kind], HAS_OLD=old is not None, HAS_CAP=cap is not None, HAS_ENTROPY=entropy is not None,
                BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    return gradient, sums.sum(0)
