"""Key/value storage of the local sampler, and the two attention plans that read and write it.

A prompt's shared beginning (system prompt, worked examples) is a `Prefix`, computed once and read by every row that
starts with it. What a row has for itself lies in a slot of the `RowCache`. Live slots are kept contiguous from 0, so
that a decoding step reads one view and copies nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mappa.model.attention import causal_attention, suffix_attention


class Prefix:
    """Keys and values, per layer [1, kv_heads, tokens, dim], of a token run at the start of a sequence."""

    def __init__(self, tokens: tuple[int, ...], layers: int) -> None:
        self.tokens = tokens
        self.keys: list[torch.Tensor] = [torch.empty(0)] * layers
        self.values: list[torch.Tensor] = [torch.empty(0)] * layers

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.keys[layer], self.values[layer] = key.contiguous(), value.contiguous()


class RowCache:
    """Each row's own keys and values: [layers, slots, kv_heads, capacity, dim]; grows by doubling."""

    def __init__(self, layers: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
        self.query_group = heads // kv_heads
        self.keys = torch.empty(layers, 0, kv_heads, 0, dim, dtype=dtype)
        self.values = torch.empty_like(self.keys)

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for that many slots of that many tokens each, keeping what is there."""
        layers, had_slots, heads, had_capacity, dim = self.keys.shape
        if slots <= had_slots and capacity <= had_capacity:
            return
        shape = (layers, _grown(had_slots, slots), heads, _grown(had_capacity, capacity), dim)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape)
            new[:, :had_slots, :, :had_capacity] = old
            setattr(self, name, new)

    def write(self, layer: int, slot: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store a prompt's own part: key and value [1, kv_heads, tokens, dim] at the slot's start."""
        tokens = key.shape[2]
        self.keys[layer, slot, :, :tokens] = key[0]
        self.values[layer, slot, :, :tokens] = value[0]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy a slot into a free one, so that live slots stay contiguous."""
        self.keys[:, target, :, :tokens] = self.keys[:, source, :, :tokens]
        self.values[:, target, :, :tokens] = self.values[:, source, :, :tokens]


class PrefillPlan:
    """Prompts' own parts, one after the other in one flat row, each behind its prefix. Writes what it computes.

    Each entry of `runs` is (tokens, prefix or None, where to write: a slot, or the Prefix being made).
    """

    def __init__(self, runs: Sequence[tuple[int, Prefix | None, int | Prefix]], cache: RowCache) -> None:
        self.runs = runs
        self.cache = cache

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        lengths = [tokens for tokens, _, _ in self.runs]
        outputs = []
        for (_, prefix, sink), q, k, v in zip(
            self.runs, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        ):
            if isinstance(sink, Prefix):
                sink.write(layer, k, v)
            else:
                self.cache.write(layer, sink, k, v)
            if prefix is None:
                outputs.append(causal_attention(q, k, v, scale))
            else:
                seen_k = torch.cat([prefix.keys[layer], k], dim=2)
                seen_v = torch.cat([prefix.values[layer], v], dim=2)
                outputs.append(suffix_attention(q, seen_k, seen_v, scale))
        return torch.cat(outputs, dim=2)


class DecodePlan:
    """A few new tokens for every row: its newest, and the guesses that follow it.

    Rows arrive sorted by adapter and prefix. `slots[i]` is the slot of row i, `lengths[i]` the tokens it holds already,
    `counts[i]` its new tokens, which lie flat, row after row; `groups` are (first row, end row, prefix or None).

    A token's attention is computed in two parts, over its prefix for all rows of a group at once and over its own slot,
    each exact with its log-sum-exp, and merged by it. Queries to the slots are padded to the largest count; nothing
    else ever sees the padding.
    """

    def __init__(
        self,
        slots: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        groups: Sequence[tuple[int, int, Prefix | None]],
        cache: RowCache,
    ) -> None:
        self.cache = cache
        ends = [0, *itertools.accumulate(counts)]
        self.groups = [(ends[first], ends[end], prefix) for first, end, prefix in groups]  # over the new tokens
        row = torch.repeat_interleave(torch.arange(len(slots)), torch.tensor(counts))
        held = torch.tensor(lengths)
        self.rows, self.most = len(slots), max(counts)
        self.slot = torch.tensor(slots)[row]  # of each new token
        self.offset = torch.cat([torch.arange(count) for count in counts])
        self.position = held[row] + self.offset
        self.width = max(length + count for length, count in zip(lengths, counts, strict=True))
        newest = held[torch.argsort(torch.tensor(slots))][:, None] + torch.arange(self.most)  # each query sees itself
        unseen = torch.arange(self.width) > newest[:, :, None]
        group = cache.query_group
        self.mask = torch.zeros(unseen.shape, dtype=cache.keys.dtype).masked_fill(unseen, float("-inf"))
        self.mask = self.mask.repeat(1, group, 1)[:, None]  # [slots, 1, group x new, width]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slot, :, self.position] = key[0].transpose(0, 1)
        values[self.slot, :, self.position] = value[0].transpose(0, 1)
        heads, dim = query.shape[1], query.shape[3]
        padded = query.new_zeros(self.rows, heads, self.most, dim)
        padded[self.slot, :, self.offset] = query[0].transpose(0, 1)
        own, own_lse = _attend(
            padded, keys[: self.rows, :, : self.width], values[: self.rows, :, : self.width], scale, self.mask
        )
        out, lse = own[self.slot, :, self.offset], own_lse[self.slot, :, self.offset]  # [tokens, heads(, dim)]
        for first, end, prefix in self.groups:
            if prefix is not None:
                part, part_lse = _attend(query[:, :, first:end], prefix.keys[layer], prefix.values[layer], scale, None)
                share = torch.sigmoid(part_lse[0].t() - lse[first:end])[:, :, None].to(out.dtype)
                out[first:end] += share * (part[0].transpose(0, 1) - out[first:end])
        return out.transpose(0, 1)[None]


class LonePlan:
    """Each row's new tokens by themselves, in calls whose shapes depend on that row alone: what a row computes is then
    the same, bit for bit, whatever else is in the batch.

    Entries are (slot, tokens it holds already, new tokens, place of the first of them in the flat row). Places that
    belong to no row are padding and come out as zeros.
    """

    def __init__(self, rows: Sequence[tuple[int, int, int, int]], cache: RowCache) -> None:
        self.rows = rows
        self.cache = cache
        self.masks = [
            torch.ones(new, held + new, dtype=torch.bool).tril(held).repeat(cache.query_group, 1)
            for _, held, new, _ in rows
        ]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        out = torch.zeros_like(query)
        _, heads, _, dim = query.shape
        kv_heads = key.shape[1]
        for (slot, held, new, at), mask in zip(self.rows, self.masks, strict=True):
            keys = self.cache.keys[layer, slot, :, : held + new]
            values = self.cache.values[layer, slot, :, : held + new]
            keys[:, held:], values[:, held:] = key[0, :, at : at + new], value[0, :, at : at + new]
            own = query[:, :, at : at + new].reshape(1, kv_heads, -1, dim)
            found = F.scaled_dot_product_attention(own, keys[None], values[None], attn_mask=mask, scale=scale)
            out[:, :, at : at + new] = found.reshape(1, heads, new, dim)
        return out


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp. query [batch, heads, queries, dim], key and value [batch, kv_heads, keys, dim],
    mask [batch, 1, heads / kv_heads · queries, keys] added to the scores. Returns as query, and [batch, heads,
    queries].
    """
    batch, heads, queries, dim = query.shape
    folded = query.reshape(batch, key.shape[1], -1, dim)  # heads that share keys become more queries
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        folded, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return out.reshape(batch, heads, queries, dim), lse.reshape(batch, heads, queries)


def _grown(had: int, needed: int) -> int:
    return had if needed <= had else max(needed, 2 * had)
