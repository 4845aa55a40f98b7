"""What is minimised: one of our objectives, or any function from log-probs to coefficients.

The gradient of every loss that depends on per-token log-probs is sum_t c_t d logprob_t with c_t = d loss / d logprob_t.
So a foreign loss is a function that returns the coefficients; the learner sees to everything else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from msgspec import Struct

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa_kernels import PolicyLoss, policy_loss


class LossBatch(Struct, frozen=True, kw_only=True):
    """The N action tokens of one micro-batch, sample after sample, and what a loss may want to know about them."""

    behaviour: torch.Tensor
    """[N] log-probs of the sampler."""
    advantage: torch.Tensor
    """[N]"""
    kl: torch.Tensor
    """[N] log pi - log pi_ref, pi the policy that sampled; zeros where `beta` is 0."""
    entropy: torch.Tensor
    """[N] of the policy as it is now, nats."""
    old: torch.Tensor | None
    """[N] log-probs of the learner before its first step on this batch. None where it takes only one, or where the
    configured objective has no use for them: without `tis_cap`."""
    roles: torch.Tensor
    """[N] index into the learner's roles."""
    offsets: torch.Tensor
    """[S + 1] action s is tokens offsets[s] to offsets[s + 1]."""


Coefficients = Callable[[torch.Tensor, LossBatch], torch.Tensor]
"""(logprob [N], batch) -> [N]: the derivative of the loss, summed over tokens, in each log-prob."""


def summed_loss(
    logprob: torch.Tensor, batch: LossBatch, config: LearnConfig, coefficients: Coefficients | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss summed over the N tokens, not yet divided, and by role the metrics of `policy_loss` and `loss`."""
    if coefficients is None:
        result = _objective(logprob, batch, config)
        parts = [_objective(logprob.detach(), batch, config, role=r).loss for r in range(len(config.roles))]
        return result.loss, {**result.metrics, "loss": torch.stack(parts)}
    per_token = coefficients(logprob.detach(), batch).detach().to(logprob.dtype) * logprob
    parts = [per_token.detach()[batch.roles == r].sum() for r in range(len(config.roles))]
    return per_token.sum(), {**_objective(logprob.detach(), batch, config).metrics, "loss": torch.stack(parts)}


def guarded(coefficients: Coefficients, refuse: Callable[[LearnError], None]) -> Coefficients:
    """`coefficients` whose failures, and results that are not N finite numbers, are told to `refuse`. They count as
    zeros: an exception would leave the other ranks waiting for the rest of the passes."""

    def call(logprob: torch.Tensor, batch: LossBatch) -> torch.Tensor:
        try:
            return _finite(coefficients(logprob, batch), logprob)
        except LearnError as error:
            refuse(error)
        except Exception as error:  # noqa: BLE001 - whatever a foreign function raises
            told = LearnError(f"the function that gives the coefficients of the loss raised {error!r}")
            told.__cause__ = error
            refuse(told)
        return torch.zeros_like(logprob)

    return call


def _finite(given: torch.Tensor, logprob: torch.Tensor) -> torch.Tensor:
    if given.shape == logprob.shape and bool(given.isfinite().all()):
        return given
    raise LearnError(
        f"the coefficients of the loss must be {len(logprob)} finite numbers, one per action token; got shape "
        f"{tuple(given.shape)}{'' if given.shape != logprob.shape else ' with a NaN or infinite one'}"
    )


def _objective(logprob: torch.Tensor, batch: LossBatch, config: LearnConfig, role: int | None = None) -> PolicyLoss:
    """The configured objective over all tokens, or over one role's alone.

    The ratio is taken to the sampler in every epoch. With `tis_cap` it is taken to the learner before the first, and
    the importance weight stands between that and the sampler.
    """
    return policy_loss(
        logprob,
        batch.behaviour,
        batch.advantage,
        kind=config.loss,
        clip_low=config.clip,
        clip_high=config.clip_high or config.clip,
        tis_cap=config.tis_cap or None,
        old_logprob=batch.old if config.tis_cap else None,
        sequence_offsets=batch.offsets,
        mask=None if role is None else batch.roles == role,
        denominator=1.0,
        entropy=batch.entropy,
        groups=batch.roles,
        n_groups=len(config.roles),
    )
