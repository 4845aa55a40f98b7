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
    """One role's part of an update; means are over its action tokens of all ranks."""

    samples: int
    masked: int
    """Samples left out: cut off at the token limit, or without a score."""
    tokens: int
    loss: float
    """Its part of the loss: summed over its action tokens, over the action tokens of all roles."""
    reward: float
    """Mean over its scored actions, 0 to 1; NaN where advantages were given instead."""
    kl: float
    """Mean of log pi - log pi_ref: how far it has moved from the base; 0 where beta is 0."""
    sampler_kl: float
    """Mean KL estimate between the sampler's and the learner's policy, before the update."""
    ratio: float
    clip_fraction: float
    entropy: float
    advantage_mean: float
    advantage_std: float
    grad_norm: float
    """Before clipping; 0 where the role had no token."""
    lr: float


class Learned(Struct, frozen=True, kw_only=True):
    """One sample as it was learned from."""

    source: str
    """The sample's."""
    advantages: tuple[float, ...]
    """Of each action token, as it entered the loss."""
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
            seen, known = max(of["tokens"], 1.0), max(of["of"], 1.0)
            mean = of["advantage"] / known
            result[role] = RoleReport(
                samples=int(of["samples"]),
                masked=int(of["samples"] - of["kept"]),
                tokens=int(of["of"]),
                loss=of["loss"] / whole,
                reward=of["reward"] / of["scored"] if of["scored"] else math.nan,
                ratio=of["ratio"] / seen,
                clip_fraction=of["clip_fraction"] / seen,
                sampler_kl=of["kl"] / seen,
                entropy=of["entropy"] / seen,
                kl=of["to_base"] / known,
                advantage_mean=mean,
                advantage_std=max(of["squared"] / known - mean * mean, 0.0) ** 0.5,
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
