"""Attention plans for a GPU: FlexAttention where prefixes are shared, flash-attn's varlen kernel where none are.

The tokens of a forest in depth-first order have one number each, `end`: where the subtree of the token's node ends.
Token q sees token kv exactly if

    kv <= q < end[kv]

(kv is not later, and q still lies below kv's node), so a mask over any forest costs one int per token, and whole
blocks of it are told to be empty, full or mixed from the least and the largest end of a block of keys, without a
[tokens, tokens] matrix.

Nothing here has run on a GPU. Checked on a CPU: the mask against the ancestor relation, the block tables against
torch's own, the forward of FlexAttention (not fused) against `TreePlan`, that torch.compile traces it once for forests
of any size, and what flash-attn would be given against one call per sequence. NOT checked: the compiled kernels, any
backward pass (FlexAttention has none on a CPU), flash-attn itself, speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch

from mappa.errors import ModelError

BLOCK = 128
"""Tokens of a block of the sparse mask: FlexAttention's own choice."""

HALF_TYPES = (torch.bfloat16, torch.float16)

Kind = Literal["flex", "varlen"]


def gpu_plan(
    lengths: Sequence[int], parents: Sequence[int], device: torch.device, dtype: torch.dtype
) -> FlexPlan | VarlenPlan:
    """The plan for a forest (as `TreePlan` takes it) of `dtype` on `device`; `plan.kind` says which it is."""
    if choose_kind(parents, dtype, flash=has_flash()) == "varlen":
        return VarlenPlan(lengths, device)
    return FlexPlan(lengths, parents, device)


def choose_kind(parents: Sequence[int], dtype: torch.dtype, *, flash: bool) -> Kind:
    """flash-attn's varlen kernel if it is installed, takes the type, and no two sequences share a prefix; else flex."""
    unshared = all(parent < 0 for parent in parents)
    return "varlen" if flash and unshared and dtype in HALF_TYPES else "flex"


@cache
def has_flash() -> bool:
    """Whether flash-attn (an optional extra) can be imported: False too where it was built for another torch."""
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401
    except ImportError:
        return False
    return True


class FlexPlan:
    """A forest of token runs in depth-first order by FlexAttention: one int per token instead of a mask.

    Takes `lengths` and `parents` as `TreePlan` does. Compiled on a GPU (with dynamic shapes: every micro-batch has
    its own number of tokens), uncompiled on a CPU, where only the forward exists and scores are made in full: for
    tests. Key/value heads are never copied per query head. `flex` is `flex_attention` or a compiled form of it. See
    the module for what has not been run.
    """

    kind: Kind = "flex"

    def __init__(
        self,
        lengths: Sequence[int],
        parents: Sequence[int],
        device: torch.device | str,
        flex: Callable[..., Any] | None = None,
    ) -> None:
        from torch.nn.attention.flex_attention import BlockMask

        ends = token_ends(lengths, parents)
        self.ends = ends.to(device)
        counts, indices, full_counts, full_indices = (table.to(device) for table in block_tables(ends, BLOCK))
        self.mask = BlockMask.from_kv_blocks(
            counts,
            indices,
            full_counts,
            full_indices,
            BLOCK_SIZE=BLOCK,
            mask_mod=sees(self.ends),
            seq_lengths=(len(ends), len(ends)),
        )
        self._flex = flex or _flex(self.ends.is_cuda)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        shared_heads = query.shape[1] != key.shape[1]
        out: torch.Tensor = self._flex(query, key, value, block_mask=self.mask, scale=scale, enable_gqa=shared_heads)
        return out


class VarlenPlan:
    """Sequences that share nothing, one after the other in a row: flash-attn's varlen kernel, causal within each.

    bfloat16 and float16 only. `varlen` is `flash_attn.flash_attn_varlen_func` or a function of the same arguments;
    flash-attn is imported at the first call.
    """

    kind: Kind = "varlen"

    def __init__(
        self, lengths: Sequence[int], device: torch.device | str, varlen: Callable[..., torch.Tensor] | None = None
    ) -> None:
        bounds, self.longest = sequence_bounds(lengths)
        self.bounds = bounds.to(device)
        self._varlen = varlen

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        if query.dtype not in HALF_TYPES and self._varlen is None:
            raise ModelError(f"flash-attn takes bfloat16 and float16, not {query.dtype}: pass the dtype to tree_plan")
        varlen = self._varlen or _flash()
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # [tokens, heads, dim]
        out = varlen(
            *rows,
            cu_seqlens_q=self.bounds,
            cu_seqlens_k=self.bounds,
            max_seqlen_q=self.longest,
            max_seqlen_k=self.longest,
            softmax_scale=scale,
            causal=True,
        )
        return out.transpose(0, 1)[None]


def sequence_bounds(lengths: Sequence[int]) -> tuple[torch.Tensor, int]:
    """flash-attn's `cu_seqlens` (int32 [sequences + 1], from 0 to the number of tokens) and the longest length."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), max(lengths, default=0)


def subtree_ends(lengths: Sequence[int], parents: Sequence[int]) -> list[int]:
    """For each node, the first token behind its subtree. Raises ValueError if the nodes are not in depth-first order:
    only then is a subtree one unbroken run of tokens."""
    open_nodes: list[int] = []  # the path to the node before
    ends = list(itertools.accumulate(lengths))
    for node, parent in enumerate(parents):
        while open_nodes and open_nodes[-1] != parent:
            open_nodes.pop()
        if parent >= 0 and not open_nodes:
            raise ValueError(
                f"node {node} does not follow the subtree of its parent {parent}: not in depth-first order"
            )
        open_nodes.append(node)
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            ends[parents[node]] = max(ends[parents[node]], ends[node])
    return ends


def token_ends(lengths: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
    """int32 [tokens]: `subtree_ends` of each token's node."""
    ends = torch.tensor(subtree_ends(lengths, parents), dtype=torch.int32)
    return ends.repeat_interleave(torch.tensor(list(lengths)))


def sees(ends: torch.Tensor) -> Callable[..., torch.Tensor]:
    """FlexAttention's `mask_mod` of a forest, from `token_ends`."""

    def mask_mod(batch: Any, head: Any, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (kv <= q) & (q < ends[kv])

    return mask_mod


def block_tables(ends: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which blocks of keys each block of queries meets: counts and indices of the mixed, then of the full ones.

    int32, counts [1, 1, blocks] and indices [1, 1, blocks, blocks], the ones that count first. Behind the diagonal all
    keys of a block precede all queries of the other, so `end` alone decides: mixed if the largest end lies beyond the
    first query, full if the least lies beyond the last. On the diagonal a block is mixed.
    """
    tokens = len(ends)
    blocks = -(-tokens // block)
    padded = ends.new_zeros(blocks * block)
    padded[:tokens] = ends
    largest = padded.view(blocks, block).amax(1)
    least = padded.view(blocks, block).amin(1)
    first = torch.arange(blocks) * block
    behind = torch.ones(blocks, blocks, dtype=torch.bool).tril(-1)
    full = behind & (first[:, None] + block <= least[None, :])
    some = (behind & (first[:, None] < largest[None, :])) | torch.eye(blocks, dtype=torch.bool)
    return (*_table(some & ~full), *_table(full))


def _table(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and indices of the True entries of each row."""
    order = torch.argsort(wanted.int(), dim=1, descending=True, stable=True)
    return wanted.sum(1).int()[None, None], order.int()[None, None]


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def _flash() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

    function: Callable[..., torch.Tensor] = flash_attn_varlen_func
    return function
