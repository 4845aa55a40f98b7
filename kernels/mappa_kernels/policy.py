"""The policy-gradient loss over packed tokens, with its metrics from the same pass.

With x_t = logprob_t, anchor_t the log-prob the ratio is taken to, rho_t = exp(x_t - anchor_t) and advantage A_t:

    ppo        -min(rho_t A_t, clip(rho_t) A_t)                     (Schulman et al. 2017, eq. 7)
    reinforce  -x_t A_t
    cispo      -stop(clip(rho_t)) x_t A_t                           (MiniMax-M1, 2506.13585, eq. 4)
    gspo       ppo with the sequence's ratio exp(mean_t (x_t - anchor_t)), its gradient spread over the tokens
               (Zheng et al., 2507.18071, the token-level variant, eq. 13)

clip(rho) limits rho to [1 - clip_low, 1 + clip_high]. Each term may be weighted by truncated importance sampling,
w_t = min(exp(learner_t - behaviour_t), tis_cap): `behaviour_logprob` is what the sampler reported, `old_logprob` what
the learner computes for the same policy. The loss is the sum over tokens divided once by a global denominator.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mappa_kernels import checks, dispatch

Kind = Literal["ppo", "reinforce", "cispo", "gspo"]
METRICS = ("ratio", "clip_fraction", "kl", "entropy", "truncated")
KINDS = ("ppo", "reinforce", "cispo", "gspo")
FLOAT_TYPES = (torch.float32, torch.float64)
LARGEST_LOG_RATIO = 20.0
"""Log-ratios are limited to this size: exp(20) is far outside any clip range, and exp(89) is infinite in fp32."""


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns."""

    loss: Tensor
    """Scalar, fp32."""
    metrics: dict[str, Tensor]
    """Detached; each scalar, or [n_groups] where groups are given. Means over unmasked tokens: ratio, clip_fraction,
    kl (behaviour to learner, the non-negative estimate), entropy, truncated (share of tokens whose importance weight
    was cut at tis_cap); and tokens, their number. A group without tokens has zeros."""


def policy_loss(
    logprob: Tensor,
    behaviour_logprob: Tensor,
    advantage: Tensor,
    *,
    kind: Kind = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    old_logprob: Tensor | None = None,
    tis_cap: float | None = None,
    sequence_offsets: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    entropy: Tensor | None = None,
    groups: Tensor | None = None,
    n_groups: int | None = None,
    backend: dispatch.Backend = "auto",
) -> PolicyLoss:
    """Loss and metrics of T action tokens; differentiable in `logprob` alone.

    logprob, behaviour_logprob, advantage [T], fp32. The ratio is taken to `old_logprob` [T] where given. Otherwise it
    is taken to `behaviour_logprob` while `tis_cap` is None; with `tis_cap` the importance weight already stands
    between sampler and learner, so the ratio is taken to the learner itself (1, with its gradient).

    sequence_offsets [S + 1]: the token range of each sequence (gspo). mask bool [T]: tokens to leave out, False; what
    they hold is never read. denominator: the number of action tokens of all ranks and micro-batches; None: the
    unmasked tokens of this call. entropy [T] and groups [T] in [0, n_groups) are for the metrics; without `entropy`
    the metric is the one-sample estimate, the mean of -logprob.

    Raises ValueError naming the argument, BackendError where `backend` cannot run.
    """
    _check(logprob, behaviour_logprob, advantage, old_logprob, sequence_offsets, mask, entropy)
    clip, tis_cap = _check_options(kind, clip_low, clip_high, tis_cap, sequence_offsets, denominator)
    groups, size = _check_groups(logprob, groups, n_groups)
    name = dispatch.choose(backend, "policy_loss", logprob.device, logprob.dtype)
    run = _fused if name == "triton" else _eager
    return run(
        logprob, behaviour_logprob, advantage, kind, clip, old_logprob, tis_cap, sequence_offsets, mask, denominator,
        entropy, groups, size,
    )  # fmt: skip


def policy_loss_reference(
    logprob: Tensor,
    behaviour_logprob: Tensor,
    advantage: Tensor,
    *,
    kind: Kind = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    old_logprob: Tensor | None = None,
    tis_cap: float | None = None,
    sequence_offsets: Tensor | None = None,
    mask: Tensor | None = None,
    denominator: float | Tensor | None = None,
    entropy: Tensor | None = None,
    groups: Tensor | None = None,
    n_groups: int | None = None,
) -> PolicyLoss:
    """`policy_loss` in plain torch, on any device."""
    _check(logprob, behaviour_logprob, advantage, old_logprob, sequence_offsets, mask, entropy)
    clip, tis_cap = _check_options(kind, clip_low, clip_high, tis_cap, sequence_offsets, denominator)
    groups, size = _check_groups(logprob, groups, n_groups)
    return _eager(
        logprob, behaviour_logprob, advantage, kind, clip, old_logprob, tis_cap, sequence_offsets, mask, denominator,
        entropy, groups, size,
    )  # fmt: skip


def _check(
    logprob: Tensor,
    behaviour_logprob: Tensor,
    advantage: Tensor,
    old_logprob: Tensor | None,
    sequence_offsets: Tensor | None,
    mask: Tensor | None,
    entropy: Tensor | None,
) -> None:
    device = logprob.device if isinstance(logprob, Tensor) else torch.device("cpu")
    checks.tensor("logprob", logprob, 1, FLOAT_TYPES, device)
    per_token = {
        "behaviour_logprob": behaviour_logprob,
        "advantage": advantage,
        "old_logprob": old_logprob,
        "entropy": entropy,
    }
    for name, value in per_token.items():
        if value is not None or name in ("behaviour_logprob", "advantage"):
            checks.tensor(name, value, 1, FLOAT_TYPES, device)
            checks.length(name, value, len(logprob), "token")  # type: ignore[arg-type]
    if mask is not None:
        checks.tensor("mask", mask, 1, (torch.bool,), device)
        checks.length("mask", mask, len(logprob), "token")
    if sequence_offsets is not None:
        checks.tensor("sequence_offsets", sequence_offsets, 1, checks.INDEX_TYPES, device)
        checks.require(len(sequence_offsets) > 0, "sequence_offsets", "must hold at least the 0 it begins with")
        checks.offsets("sequence_offsets", sequence_offsets, len(sequence_offsets) - 1, len(logprob))


def _check_options(
    kind: str,
    clip_low: object,
    clip_high: object,
    tis_cap: object,
    sequence_offsets: Tensor | None,
    denominator: object,
) -> tuple[tuple[float, float], float | None]:
    """Refuse wrong options; returns the limits of the ratio and tis_cap as plain numbers."""
    checks.require(kind in KINDS, "kind", f"expected one of {', '.join(KINDS)}, got {kind!r}")
    below, above = checks.number("clip_low", clip_low), checks.number("clip_high", clip_high)
    checks.require(0.0 <= below <= 1.0, "clip_low", f"must be in [0, 1], is {below}")
    checks.require(above >= 0.0, "clip_high", f"must not be negative, is {above}")
    checks.require(kind != "gspo" or sequence_offsets is not None, "sequence_offsets", "is needed with kind='gspo'")
    if denominator is not None:
        checks.positive("denominator", denominator)
    return (1.0 - below, 1.0 + above), None if tis_cap is None else checks.positive("tis_cap", tis_cap)


def _check_groups(logprob: Tensor, groups: Tensor | None, n_groups: object) -> tuple[Tensor | None, int]:
    if groups is None:
        checks.require(n_groups is None, "groups", "is needed with n_groups")
        return None, 1
    checks.tensor("groups", groups, 1, checks.INDEX_TYPES, logprob.device)
    checks.length("groups", groups, len(logprob), "token")
    size = 0 if n_groups is None else checks.count("n_groups", n_groups)
    if n_groups is None and groups.numel():
        size = int(groups.max()) + 1
    checks.within("groups", groups, 0, size)
    return groups, size


def _eager(
    logprob: Tensor,
    behaviour_logprob: Tensor,
    advantage: Tensor,
    kind: Kind,
    clip: tuple[float, float],
    old_logprob: Tensor | None,
    tis_cap: float | None,
    sequence_offsets: Tensor | None,
    mask: Tensor | None,
    denominator: float | Tensor | None,
    entropy: Tensor | None,
    groups: Tensor | None,
    n_groups: int,
) -> PolicyLoss:
    if mask is None:
        mask = torch.ones_like(logprob, dtype=torch.bool)
    # What masked tokens hold may be NaN: replace it before it meets anything with a gradient.
    logprob = torch.where(mask, logprob, 0.0)
    behaviour = torch.where(mask, behaviour_logprob.detach(), 0.0)
    advantage = torch.where(mask, advantage.detach(), 0.0)
    learner = logprob.detach() if old_logprob is None else torch.where(mask, old_logprob.detach(), 0.0)
    anchor = behaviour if old_logprob is None and tis_cap is None else learner
    weight, truncated = _importance(learner, behaviour, tis_cap)

    log_ratio = logprob - anchor
    if kind == "gspo":
        assert sequence_offsets is not None
        log_ratio = _sequence_log_ratio(log_ratio, sequence_offsets, mask)
    ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    value, clipped = _surrogate(kind, logprob, ratio, advantage, clip)
    denominator = _scalar(denominator, mask)
    loss = -(weight * value).sum() / denominator

    to_behaviour = (logprob.detach() - behaviour).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    kl = torch.expm1(to_behaviour) - to_behaviour
    spread = -logprob.detach() if entropy is None else entropy.detach()
    per_token = dict(zip(METRICS, (ratio.detach(), clipped, kl, spread, truncated), strict=True))
    return PolicyLoss(loss, _means(per_token, mask, groups, n_groups))


class _WithGradient(torch.autograd.Function):
    """A value whose gradient in `logprob` is known already."""

    @staticmethod
    def forward(ctx: Any, logprob: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = logprob.dtype
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (grad * gradient).to(ctx.dtype), None, None


def _fused(
    logprob: Tensor,
    behaviour_logprob: Tensor,
    advantage: Tensor,
    kind: Kind,
    clip: tuple[float, float],
    old_logprob: Tensor | None,
    tis_cap: float | None,
    sequence_offsets: Tensor | None,
    mask: Tensor | None,
    denominator: float | Tensor | None,
    entropy: Tensor | None,
    groups: Tensor | None,
    n_groups: int,
) -> PolicyLoss:
    """Value, gradient and metrics from one kernel (gpu/policy.py)."""
    from mappa_kernels.gpu import policy as gpu

    if mask is None:
        mask = torch.ones_like(logprob, dtype=torch.bool)
    sequence_ratio = None
    if kind == "gspo":
        assert sequence_offsets is not None
        fallback = behaviour_logprob if tis_cap is None else logprob
        anchor = old_logprob if old_logprob is not None else fallback
        log_ratio = torch.where(mask, logprob.detach() - anchor.detach(), 0.0)
        sequence_ratio = _sequence_log_ratio(log_ratio, sequence_offsets, mask)
    gradient, sums = gpu.run(
        logprob, behaviour_logprob, advantage, kind, clip, old_logprob, tis_cap, mask, entropy, groups, n_groups,
        sequence_ratio, LARGEST_LOG_RATIO,
    )  # fmt: skip
    denominator = _scalar(denominator, mask)
    loss = _WithGradient.apply(logprob, -sums[:, 0].sum() / denominator, gradient / denominator)
    means = sums[:, 1:6] / sums[:, 6:].clamp(min=1)
    if groups is None:
        means, sums = means[0], sums[0]
    metrics = dict(zip(METRICS, means.unbind(-1), strict=True))
    return PolicyLoss(loss, {**metrics, "tokens": sums[..., 6].long()})


def _scalar(denominator: float | Tensor | None, mask: Tensor) -> float | Tensor:
    """What the sum over tokens is divided by: a number, or a tensor without dimensions."""
    if denominator is None:
        return mask.sum().clamp(min=1)
    return denominator.detach().reshape(()) if isinstance(denominator, Tensor) else denominator


def _importance(learner: Tensor, behaviour: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """min(exp(learner - behaviour), cap), and where it was cut; ones where there is no cap."""
    if cap is None:
        return torch.ones_like(learner), torch.zeros_like(learner)
    weight = (learner - behaviour).clamp(max=LARGEST_LOG_RATIO).exp()
    return weight.clamp(max=cap), (weight > cap).to(weight.dtype)


def _sequence_log_ratio(log_ratio: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
    """Value: the mean of each sequence's unmasked tokens. Gradient: that of the token itself."""
    per_token = log_ratio.detach()
    if not len(per_token):
        return log_ratio
    offsets = offsets.long()
    total = torch.segment_reduce(per_token * mask, "sum", offsets=offsets, initial=0.0)
    count = torch.segment_reduce(mask.to(per_token.dtype), "sum", offsets=offsets, initial=0.0)
    mean = torch.repeat_interleave(total / count.clamp(min=1), offsets.diff(), output_size=len(per_token))
    return mean + (log_ratio - per_token)


def _surrogate(
    kind: Kind, logprob: Tensor, ratio: Tensor, advantage: Tensor, clip: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """What is to be maximised, [T], and 1 where the clip took effect."""
    limited = ratio.clamp(*clip)
    if kind == "reinforce":
        return logprob * advantage, torch.zeros_like(advantage)
    if kind == "cispo":
        return limited.detach() * logprob * advantage, (limited != ratio).to(advantage.dtype)
    free, bound = ratio * advantage, limited * advantage
    return torch.minimum(free, bound), (bound < free).to(advantage.dtype)


def _means(per_token: dict[str, Tensor], mask: Tensor, groups: Tensor | None, n_groups: int) -> dict[str, Tensor]:
    """Means over the unmasked tokens of each group. By a product with the membership matrix: no atomics."""
    columns = torch.where(mask[:, None], torch.stack([*per_token.values()], dim=1), 0.0)
    if groups is None:
        tokens, sums = mask.sum(), columns.sum(0)
    else:
        member = (groups[None, :] == torch.arange(n_groups, device=mask.device)[:, None]) & mask
        tokens, sums = member.sum(1), member.to(columns.dtype) @ columns
    means = sums / tokens.clamp(min=1).unsqueeze(-1)
    metrics = dict(zip(per_token, means.unbind(-1), strict=True))
    return {**metrics, "tokens": tokens}
