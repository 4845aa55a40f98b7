"""What one update did, per role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from msgspec import Struct

from mappa.learn import ranks
from mappa.learn.samples import action_tokens
from mappa.types import Sample


class RoleReport(Struct, frozen=True, kw_only=True):
    """One role's part of an update; means are over its action tokens of all ranks."""

    samples: int
    masked: int
    """Samples left out: cut off at the token limit, or without a score."""
    tokens: int
    kl: float
    """Mean of log pi - log pi_ref: how far it has moved from the base; 0 where beta is 0."""
    sampler_kl: float
    """Mean KL estimate between the sampler's and the learner's policy, before the update."""
    ratio: float
    clip_fraction: float
    entropy: float
    advantage_std: float
    grad_norm: float
    """Before clipping; 0 where the role had no token."""
    lr: float


class LearnReport(Struct, frozen=True, kw_only=True):
    """One update."""

    step: int
    roles: dict[str, RoleReport]
    tokens_trained: int
    """Action tokens in the loss."""
    tokens_computed: int
    """Tokens that went through the model, shared prefixes once."""
    tokens_unshared: int
    """Tokens that would have, without sharing."""


class Tally:
    """Sums per role, to be turned into a report when the step is done. Collective: `reports` adds up all ranks."""

    _SUMS = ("ratio", "clip_fraction", "kl", "entropy")

    def __init__(self, roles: Sequence[str]) -> None:
        self.roles = roles
        # columns: the four sums of policy_loss, tokens, kl to base, advantage, its square, samples, masked
        self._sums = torch.zeros(len(roles), 10, dtype=torch.float64)

    def add_pass(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Metrics of one `policy_loss`, grouped by role."""
        tokens = metrics["tokens"].double()
        for column, name in enumerate(self._SUMS):
            self._sums[:, column] += metrics[name].double() * tokens
        self._sums[:, 4] += tokens

    def add_samples(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[Sample],
        advantages: Sequence[torch.Tensor],
        kl: Sequence[torch.Tensor],
    ) -> None:
        for sample, advantage, distance in zip(chosen, advantages, kl, strict=True):
            row = self._sums[self.roles.index(sample.role)]
            assert len(advantage) == action_tokens(sample)
            row[5] += distance.double().sum()
            row[6] += advantage.double().sum()
            row[7] += advantage.double().square().sum()
        for sample in samples:
            self._sums[self.roles.index(sample.role), 8] += 1
        for sample in chosen:
            self._sums[self.roles.index(sample.role), 9] += 1

    def reports(self, norms: Mapping[str, float], lr: float) -> dict[str, RoleReport]:
        if ranks.world_size() > 1:
            dist.all_reduce(self._sums)
        result = {}
        for role, row in zip(self.roles, self._sums.tolist(), strict=True):
            n = max(row[4], 1.0)
            mean = row[6] / n
            result[role] = RoleReport(
                samples=int(row[8]),
                masked=int(row[8] - row[9]),
                tokens=int(row[4]),
                ratio=row[0] / n,
                clip_fraction=row[1] / n,
                sampler_kl=row[2] / n,
                entropy=row[3] / n,
                kl=row[5] / n,
                advantage_std=max(row[7] / n - mean * mean, 0.0) ** 0.5,
                grad_norm=norms.get(role, 0.0),
                lr=lr,
            )
        return result
