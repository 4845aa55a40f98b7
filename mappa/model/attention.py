"""Attention by plan: one decoder forward for packed trees, ragged prefill and batched decoding.

A forward pass over a flat row of tokens is given a *plan* that knows which tokens see which. The plan's `attend`
is called once per layer. `TreePlan`, here, is the one that trains: token sequences that share a prefix are nodes of
a forest, so that a shared token is computed once. The sampler has plans of its own over its key/value cache.
On a GPU `tree_plan` takes those of `mappa.model.gpu_attention` in its place.

Shapes: query [1, heads, tokens, dim]; key and value [1, kv_heads, tokens, dim]; result as query.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

PLAN_ATTENTION = "mappa_plan"


class Plan(Protocol):
    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor: ...


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan | None = None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if plan is None:
        raise ValueError("this model attends by plan: pass plan=... to its decoder layers (see mappa.model.attention)")
    return plan.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(PLAN_ATTENTION, _attention)


def decode_layers(
    decoder: Any, hidden: torch.Tensor, positions: torch.Tensor, plan: Plan, *, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Run decoder layers `start` to `stop` over a flat row. hidden [1, tokens, features], positions [tokens]."""
    rotary = decoder.rotary_emb(hidden, position_ids=positions[None])
    for layer in decoder.layers[start:stop]:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, plan=plan)
    return hidden


def tree_plan(
    lengths: Sequence[int],
    parents: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """The plan of a forest (see `TreePlan`): on a CUDA device FlexAttention, or flash-attn where nothing is shared and
    it is installed; gathered attention on any other. `dtype` is the queries': flash-attn takes half types only.
    `plan.kind` tells which it became."""
    device = torch.device(device)
    if device.type != "cuda":
        return TreePlan(lengths, parents)
    from mappa.model.gpu_attention import gpu_plan

    return gpu_plan(lengths, parents, device, dtype)


class TreePlan:
    """A forest of token runs in depth-first order: every node sees its ancestors and, causally, itself.

    `lengths[i]` tokens belong to node i; `parents[i]` is the index of its parent, -1 at a root, always below i.
    Each node's queries meet the gathered keys of its ancestors in one exact attention call: no [tokens, tokens] mask.
    """

    kind = "gathered"

    def __init__(self, lengths: Sequence[int], parents: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.chains: list[list[int]] = []
        for node, parent in enumerate(parents):
            self.chains.append([node] if parent < 0 else [*self.chains[parent], node])

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        # Split once: slicing per node would make autograd add up one full-size gradient per slice.
        queries, keys, values = (x.split(self.lengths, dim=2) for x in (query, key, value))
        outputs = []
        for node, chain in enumerate(self.chains):
            if len(chain) == 1:
                outputs.append(causal_attention(queries[node], keys[node], values[node], scale))
                continue
            k = torch.cat([keys[i] for i in chain], dim=2)
            v = torch.cat([values[i] for i in chain], dim=2)
            outputs.append(suffix_attention(queries[node], k, v, scale))
        return torch.cat(outputs, dim=2)


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Plain causal attention of a sequence with itself, key/value heads shared by groups of query heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def suffix_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Queries are the last tokens of the keys' sequence: each sees all that came before it, and itself.

    The query heads that share a key/value head are laid one after the other as more queries of that head, so a
    shared prefix is never copied per query head.
    """
    _, heads, own, dim = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    folded = query.reshape(1, kv_heads, heads // kv_heads * own, dim)
    mask = torch.ones(own, seen, dtype=torch.bool, device=query.device).tril(seen - own)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask.repeat(heads // kv_heads, 1), scale=scale)
    return out.reshape(1, heads, own, dim)
