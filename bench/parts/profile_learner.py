"""What an update costs: operations and bytes of the micro-batches that the real packer makes, or of padded ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from bench.parts.profile_node import Node, Work, forward_flops, linear_elements, prompt_work
from mappa.config import LearnConfig
from mappa.learn.memory import FLOAT, MemorySettings, adapter_elements
from mappa.learn.packing import MicroBatch, computed, pack, split_by_cost
from mappa.learn.samples import action_tokens
from mappa.learn.shape import ModelShape
from mappa.types import Sample

Batching = Literal["shared", "packed", "padded"]
"""The learner's own; the same with nothing shared; samples as they come, padded to the longest of their micro-batch."""


class Update(Struct, frozen=True, kw_only=True):
    """One optimiser step on `ranks` GPUs."""

    ranks: int
    works: tuple[tuple[Work, ...], ...]
    """By rank, of each of its micro-batches."""
    useful: Work
    """Of all of them, without padding."""

    @property
    def tokens(self) -> float:
        """Computed, padding included."""
        return sum(work.tokens for rank in self.works for work in rank)

    @property
    def passes(self) -> int:
        """Micro-batches of the busiest rank: the others go along."""
        return max(len(rank) for rank in self.works)


def plan_update(samples: Sequence[Sample], roles: Sequence[str], ranks: int, tokens: int, batching: Batching) -> Update:
    """Divide samples among ranks and micro-batches of `tokens`. Raises LearnError for a sample that does not fit."""
    if batching == "padded":
        works = tuple(_padded(samples[rank::ranks], tokens) for rank in range(ranks))
        useful = sum(map(_own_work, samples), Work())
    else:
        chosen = samples if batching == "shared" else [_alone(sample) for sample in samples]
        parts = split_by_cost(chosen, roles, ranks)
        works = tuple(tuple(map(work_of, pack(part, roles, tokens))) for part in parts)
        useful = sum((work for rank in works for work in rank), Work())
    return Update(ranks=ranks, works=works, useful=useful)


def work_of(batch: MicroBatch) -> Work:
    """A token attends to all up to itself on its path, wherever that lies in the row."""
    return Work(batch.tokens, float(batch.positions.sum()) + batch.tokens, len(batch.rows))


class Learning(Struct, frozen=True, kw_only=True):
    """How weights are trained."""

    shape: ModelShape
    settings: MemorySettings
    """Of the adapters, where those are trained."""
    full: bool
    """All weights, ZeRO-3, with a reference model and the sampler's log-probs computed anew, as published."""
    reference: bool
    """There is a KL term, so the base's log-probs are computed first."""
    recompute: bool

    @classmethod
    def of(cls, config: LearnConfig, shape: ModelShape, ranks: int, *, full: bool = False) -> Learning:
        return cls(
            shape=shape,
            settings=MemorySettings.of(config, dtype="bfloat16", world_size=ranks),
            full=full,
            reference=config.beta > 0,
            recompute=config.checkpoint_activations or full,
        )

    @property
    def forwards(self) -> int:
        """Passes without gradients."""
        return self.reference + self.full

    @property
    def adapter_elements(self) -> int:
        """Of all adapters."""
        return self.settings.roles * adapter_elements(self.shape, self.settings)

    def flops(self, work: Work, *, recomputed: bool) -> float:
        """Of a micro-batch. A backward pass costs a forward pass for the gradients of its inputs, and another one for
        those of the weights where they are trained; of attention and adapters both. `recomputed`: what a backward pass
        computes again counts."""
        shape = self.shape
        linear = 2 * linear_elements(shape) * work.tokens
        attention = forward_flops(shape, Work(0, work.pairs, 0))
        head = forward_flops(shape, Work(0, 0, work.scored))
        adapters = 0 if self.full else 2 * adapter_elements(shape, self.settings) * work.tokens
        forward = linear + attention + head
        backward = linear * (2 if self.full else 1) + 2 * attention + head * (2 if self.full else 1) + 2 * adapters
        again = linear + attention + adapters if recomputed and self.recompute else 0
        return forward * (1 + self.forwards) + adapters + backward + again

    def seconds(self, update: Update, node: Node) -> float:
        """The slowest rank's. ZeRO-3 gathers the weights for every pass while it computes, and reduces gradients."""
        weights = 2 * sum(self.shape.tensors) if self.full else 0
        moved = (2 + self.forwards) * weights + weights  # gathered for each pass, the backward one too; reduced
        gather = moved * (update.ranks - 1) / update.ranks / (node.nvlink * node.nvlink_share)
        slowest = 0.0
        for rank in update.works:
            computing = sum(self.flops(work, recomputed=True) for work in rank) / (node.flops * node.learn_share)
            slowest = max(slowest, computing + len(rank) * node.pass_overhead, len(rank) * gather)
        return slowest + self._reduce_and_step(update.ranks, node)

    def _reduce_and_step(self, ranks: int, node: Node) -> float:
        """Gradients of the adapters reduced, the share of the optimiser, updated weights gathered."""
        elements = sum(self.shape.tensors) if self.full else self.adapter_elements
        moved = 0 if self.full else 2 * FLOAT * elements * (ranks - 1) / ranks
        state = 8 * FLOAT * elements / ranks  # gradient, master and two moments, each read and written
        return moved / (node.nvlink * node.nvlink_share) + state / (node.hbm * node.decode_hbm_share)

    def publish_seconds(self, node: Node) -> float:
        """Adapters go through host memory while serving goes on; full weights over NVLink."""
        if self.full:
            return node.publish_overhead + 2 * sum(self.shape.tensors) / (node.nvlink * node.nvlink_share)
        return node.publish_overhead + FLOAT * self.adapter_elements / node.host


def _padded(samples: Sequence[Sample], budget: int) -> tuple[Work, ...]:
    """Micro-batches of as many samples, in their order, as fit when each is as long as the longest; logits of all."""
    batches: list[list[int]] = []
    for length in (len(sample.tokens) for sample in samples):
        if batches and max(*batches[-1], length) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(length)
        else:
            batches.append([length])
    made = []
    for lengths in batches:
        count, longest = len(lengths), max(lengths)
        made.append(Work(count * longest, count * longest * (longest + 1) / 2, count * longest))
    return tuple(made) or (Work(),)


def _alone(sample: Sample) -> Sample:
    """The same with a first token that no other sample has, so that nothing is shared."""
    own = zlib.crc32(sample.source.encode())
    return replace(sample, tokens=(own, *sample.tokens[1:]))


def _own_work(sample: Sample) -> Work:
    """Of a sample that is computed alone."""
    return Work(len(computed(sample)), prompt_work(len(computed(sample))).pairs, action_tokens(sample))
