"""What one update did, per role."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence

import torch
from msgspec import Struct

from mappa.learn import ranks
from mappa.learn.samples import action_tokens
from mappa.types import Sample


class RoleReport(Struct, frozen=True, kw_only=True):
    """One role's part of an update; means are over its action tokens of all ranks, None where there was none: it is
    frozen, did not act, or was masked."""

    samples: int
    masked: int
    """Samples left out: cut off at the token limit, or without a score."""
    tokens: int
    loss: float
    """Its part of the loss: summed over its action tokens, over the action tokens of all roles."""
    reward: float
    """Mean over its scored actions, 0 to 1; NaN where advantages were given instead."""
    kl: float | None
    """Mean of log pi - log pi_ref: how far it has moved from the base; 0 where beta is 0."""
    sampler_kl: float | None
    """Mean KL estimate between the sampler's and the learner's policy, before the update. This and the next three are
    over tokens of actions that have an advantage other than 0: the others are not computed."""
    ratio: float | None
    clip_fraction: float | None
    entropy: float | None
    advantage_mean: float | None
    advantage_std: float | None
    """Of the advantages as they enter the loss: near 1 where they are normalised."""
    grad_norm: float
    """Before clipping; 0 where the role had no token."""
    lr: float


class Learned(Struct, frozen=True, kw_only=True):
    """One sample as it was learned from."""

    source: str
    """The sample's."""
    advantages: tuple[float, ...]
    """Of each token of its scored actions, as it entered the loss."""
    kl: float | None
    """Mean of log pi - log pi_ref over them; None where beta is 0."""
    entropy: float | None
    """Mean of the policy's over them before the update; None where no advantage differed from 0."""


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
    seconds: dict[str, float]
    """This rank's time by part: attention, linear, lm_head, optimizer, other. On a GPU, of launching."""
    peak_memory_gb: float
    """Most memory this rank has held so far: of the GPU where there is one, else of the process. GiB."""
    samples: tuple[Learned, ...]
    """Of all ranks on rank 0, elsewhere none; those that were left out are not among them."""


def peak_memory_gb() -> float:
    """See LearnReport."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Tally:
    """Sums per role, to be turned into a report when the step is done. Collective: `reports` adds up all ranks."""

    _MEANS = ("ratio", "clip_fraction", "kl", "entropy")  # of policy_loss, over tokens
    _PER_SAMPLE = ("to_base", "advantage", "squared", "of", "kept", "reward", "scored", "samples")
    _COLUMNS = (*_MEANS, "loss", "tokens", *_PER_SAMPLE)

    def __init__(self, roles: Sequence[str]) -> None:
        self.roles = roles
        self._sums = torch.zeros(len(roles), len(self._COLUMNS), dtype=torch.float64)
        self._entropy: dict[int, torch.Tensor] = {}

    def add_pass(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Metrics of one pass's loss, by role."""
        tokens = metrics["tokens"].double().cpu()
        for name in self._MEANS:
            self._column(name)[:] += metrics[name].double().cpu() * tokens
        self._column("loss")[:] += metrics["loss"].double().cpu()
        self._column("tokens")[:] += tokens

    def add_entropy(self, parts: Iterable[tuple[int, torch.Tensor]]) -> None:
        """Of the action tokens of a pass, by the index of their part; the first pass over a part counts."""
        for index, values in parts:
            self._entropy.setdefault(index, values.double().mean())  # a number later: on a GPU that waits

    def add_samples(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[Sample],
        advantages: Sequence[torch.Tensor],
        kl: Sequence[torch.Tensor],
    ) -> None:
        """What is known before any pass: of all samples, and per action token of those that count."""
        for sample, advantage, distance in zip(chosen, advantages, kl, strict=True):
            assert len(advantage) == action_tokens(sample)
            role = self.roles.index(sample.role)
            values: dict[str, float] = {
                "to_base": float(distance.double().sum()),
                "advantage": float(advantage.double().sum()),
                "squared": float(advantage.double().square().sum()),
                "of": len(advantage),
                "kept": 1,
                "reward": sum(reward for reward in sample.rewards if not math.isnan(reward)),
                "scored": sum(not math.isnan(reward) for reward in sample.rewards),
            }
            for name, value in values.items():
                self._column(name)[role] += value
        for sample in samples:
            self._column("samples")[self.roles.index(sample.role)] += 1

    def reports(self, norms: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, RoleReport]:
        """By role; `norms` and `rates` are the gradient norms and learning rates of the step."""
        sums = ranks.add(self._sums)
        result = {}
        whole = max(float(sums[:, self._COLUMNS.index("tokens")].sum()), 1.0)
        for role, row in zip(self.roles, sums.tolist(), strict=True):
            of = dict(zip(self._COLUMNS, row, strict=True))
            mean = _mean(of["advantage"], of["of"])
            square = _mean(of["squared"], of["of"])
            result[role] = RoleReport(
                samples=int(of["samples"]),
                masked=int(of["samples"] - of["kept"]),
                tokens=int(of["of"]),
                loss=of["loss"] / whole,
                reward=of["reward"] / of["scored"] if of["scored"] else math.nan,
                ratio=_mean(of["ratio"], of["tokens"]),
                clip_fraction=_mean(of["clip_fraction"], of["tokens"]),
                sampler_kl=_mean(of["kl"], of["tokens"]),
                entropy=_mean(of["entropy"], of["tokens"]),
                kl=_mean(of["to_base"], of["of"]),
                advantage_mean=mean,
                advantage_std=None if mean is None or square is None else max(square - mean * mean, 0.0) ** 0.5,
                grad_norm=norms.get(role, 0.0),
                lr=rates[role],
            )
        return result

    def learned(
        self,
        chosen: Sequence[Sample],
        advantages: Sequence[torch.Tensor],
        kl: Sequence[torch.Tensor] | None,
        parts: Sequence[int],
    ) -> tuple[Learned, ...]:
        """What was made of each sample. `kl` is None where beta is 0; `parts` are the indices of those with a gradient.
        Collective."""
        entropy = {parts[part]: float(value) for part, value in self._entropy.items()}
        mine = [
            Learned(
                source=sample.source,
                advantages=tuple(advantage.tolist()),
                kl=None if kl is None else float(kl[index].double().mean()),
                entropy=entropy.get(index),
            )
            for index, (sample, advantage) in enumerate(zip(chosen, advantages, strict=True))
        ]
        return tuple(ranks.gather(mine))

    def _column(self, name: str) -> torch.Tensor:
        return self._sums[:, self._COLUMNS.index(name)]


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
