"""Passes through the model: a micro-batch in, log-probs of its action tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from mappa.config import LearnConfig
from mappa.learn import ranks
from mappa.learn.clock import Clock, TimedPlan
from mappa.learn.loss import Coefficients, LossBatch, summed_loss
from mappa.learn.packing import MicroBatch, padding
from mappa.learn.report import Tally
from mappa.learn.weights import RoleWeights
from mappa.model.attention import decode_layers
from mappa.model.base import Base
from mappa.model.forward import scored_hidden
from mappa.model.lora import Adapter, Router
from mappa_kernels import linear_logprob


class Prepared:
    """A micro-batch on the device, with what all passes over it share. `sizes` are the action tokens of its samples."""

    def __init__(self, batch: MicroBatch, sizes: Sequence[int], policy: Policy) -> None:
        self.batch = batch.to(ranks.device())
        self.plan = TimedPlan(self.batch.plan(policy.dtype), policy.clock)
        self.sizes = list(sizes)
        self._policy = policy
        self._below: torch.Tensor | None = None

    @property
    def below(self) -> torch.Tensor:
        """Hidden states [1, T, features] at the lowest adapted layer: the same for policy and reference."""
        if self._below is not None:
            return self._below
        below = self._policy.below(self)
        config = self._policy.config
        # Where nothing lies below, embedding again is cheaper than keeping. Ranks that share out the base compute it
        # together, every time.
        if config.first_layer > 0 and not config.shard_base:
            self._below = below
        return below

    def split(self, values: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """(index of the sample, its part of [N] `values`, on the CPU)."""
        return zip(self.batch.samples, values.detach().cpu().split(self.sizes), strict=True)


class Policy(nn.Module):
    """What DeepSpeed drives: its parameters are the adapters, its forward the summed loss of one micro-batch.

    The frozen base is registered here only if ZeRO-3 is to divide it among the ranks.
    """

    def __init__(
        self, base: Base, router: Router, weights: Mapping[str, RoleWeights], config: LearnConfig, temperature: float
    ) -> None:
        super().__init__()
        self._outside = (base, router, weights)  # in a tuple: a module would register what it holds
        self.config = config
        self.temperature = temperature
        self.dtype = base.dtype
        self.clock = Clock()
        # Directly, not in a list: ZeRO-3 gathers a module's own parameters when that module is called.
        for role, mine in weights.items():
            for layer, parameter in mine.parameters.items():
                self.register_parameter(f"{role}/{layer}".replace(".", "/"), parameter)
        if config.shard_base:
            for weight in base.model.parameters():
                weight.data = weight.data.contiguous()  # it is cut into flat pieces
            self.base = base.model

    def forward(
        self, item: Prepared | None, loss: LossBatch | None, tally: Tally, coefficients: Coefficients | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the action tokens, and their log-probs [N].

        Without an item, zero by way of the smallest one: ZeRO adds up the gradients of all ranks in the order in which
        they arrive, so that a gradient of zero has to come through the same operations as any other.
        """
        if item is None or loss is None:
            logprob, _ = self.logprobs(Prepared(padding(self.config.roles), (1,), self))
            return logprob.sum() * 0.0, logprob
        logprob, entropy = self.logprobs(item)
        value, metrics = summed_loss(logprob, replace(loss, entropy=entropy), self.config, coefficients)
        tally.add_pass(metrics)
        tally.add_entropy(item.split(entropy))
        return value, logprob.detach()

    @torch.no_grad()
    def below(self, item: Prepared) -> torch.Tensor:
        """See `Prepared.below`."""
        decoder = self._outside[0].decoder
        embedded = decoder.embed_tokens(item.batch.ids)[None]
        return decode_layers(decoder, embedded, item.batch.positions, item.plan, stop=self.config.first_layer)

    def logprobs(self, item: Prepared, *, reference: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies [N] of the action tokens, by the adapters or by the base alone."""
        base, router, weights = self._outside
        batch = item.batch
        in_play: Sequence[Adapter] = () if reference else [weights[role].trainable() for role in self.config.roles]
        scored = scored_hidden(
            base.decoder,
            item.below,
            batch.positions,
            item.plan,
            batch.rows,
            router,
            in_play,
            (0,) if reference else batch.role_offsets,
            first_layer=self.config.first_layer,
            recompute=self.config.checkpoint_activations,
        )
        with self.clock.measure("lm_head"), self._whole(base.head):
            logprob, entropy = linear_logprob(
                scored[batch.predictors], base.head, batch.targets, temperature=self.temperature, entropy=True
            )
        assert entropy is not None
        return logprob[batch.pick], entropy[batch.pick]

    def _whole(self, weight: torch.Tensor) -> AbstractContextManager[Any]:
        """The output head in one piece. It is needed in the forward pass alone: the kernel's backward has no use for
        it."""
        if not self.config.shard_base:
            return nullcontext()
        from deepspeed import zero

        gathered: AbstractContextManager[Any] = zero.GatheredParameters([weight])
        return gathered
