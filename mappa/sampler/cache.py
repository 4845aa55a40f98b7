"""Key/value storage of the local sampler, and the two attention plans that read and write it.

A prompt's shared beginning (system prompt, worked examples) is a `Prefix`, computed once and read by every row that
starts with it. What a row has for itself lies in a slot of the `RowCache`. Live slots are kept contiguous from 0, so
that a decoding step reads one view and copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

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

    def __init__(self, layers: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
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
    """One new token for every row.

    Rows arrive sorted by adapter and prefix; `slots[i]` is the slot of row i and `lengths[i]` the tokens it holds
    already; `groups` are (first row, end row, prefix or None) over the rows.
    """

    def __init__(
        self,
        slots: Sequence[int],
        lengths: Sequence[int],
        groups: Sequence[tuple[int, int, Prefix | None]],
        cache: RowCache,
    ) -> None:
        self.cache = cache
        self.groups = groups
        self.slots = torch.tensor(slots)
        self.lengths = torch.tensor(lengths)
        self.row_of_slot = torch.argsort(self.slots)
        self.width = max(lengths) + 1
        unused = torch.arange(self.width) > self.lengths[:, None]
        self.mask = torch.zeros(len(slots), 1, 1, self.width).masked_fill(unused[:, None, None], float("-inf"))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        rows, kv_heads, dim = query.shape[2], key.shape[1], query.shape[3]
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slots, :, self.lengths] = key[0].transpose(0, 1)
        values[self.slots, :, self.lengths] = value[0].transpose(0, 1)
        own_keys, own_values = keys[:rows, :, : self.width], values[:rows, :, : self.width]

        q = (query[0].transpose(0, 1) * scale).reshape(rows, kv_heads, -1, dim)  # [rows, kv, group, dim]
        own = torch.matmul(q[self.row_of_slot], own_keys.transpose(2, 3))[self.slots].float() + self.mask
        own_weights, shared = [], []
        for first, end, prefix in self.groups:
            weights, out = self._shared(q[first:end], own[first:end], prefix, layer)
            own_weights.append(weights)
            shared.append(out)
        weights = torch.cat(own_weights).to(values.dtype)
        out = torch.matmul(weights[self.row_of_slot], own_values)[self.slots] + torch.cat(shared)
        return out.reshape(1, rows, -1, dim).transpose(1, 2)

    def _shared(
        self, q: torch.Tensor, own: torch.Tensor, prefix: Prefix | None, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax over prefix and own scores together: the weights of the own part, and the prefix's share of the sum."""
        rows, kv_heads, group, dim = q.shape
        if prefix is None:
            return torch.softmax(own, dim=-1), torch.zeros_like(q)
        keys, values = prefix.keys[layer][0], prefix.values[layer][0]  # [kv, prefix, dim]
        flat = q.transpose(0, 1).reshape(kv_heads, rows * group, dim)
        scores = torch.matmul(flat, keys.transpose(1, 2)).view(kv_heads, rows, group, -1).transpose(0, 1)
        weights = torch.softmax(torch.cat([scores.float(), own], dim=-1), dim=-1)
        length = keys.shape[1]
        seen = weights[..., :length].transpose(0, 1).reshape(kv_heads, rows * group, length).to(values.dtype)
        out = torch.matmul(seen, values).view(kv_heads, rows, group, dim).transpose(0, 1)
        return weights[..., length:], out


def _grown(had: int, needed: int) -> int:
    return had if needed <= had else max(needed, 2 * had)
