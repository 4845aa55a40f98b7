"""The decoder's forward pass as training needs it: layers checkpointed on request, the last cut down to what counts.

Only the rows that predict an action token are scored. Attention needs every row; what comes after it in the last layer
(its MLP), the final norm and the output head do not, and run on the scored rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mappa.model.attention import Plan
from mappa.model.lora import Adapter, Router

_PLAIN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def scored_hidden(
    decoder: Any,
    hidden: torch.Tensor,
    positions: torch.Tensor,
    plan: Plan,
    rows: torch.Tensor,
    router: Router,
    adapters: Sequence[Adapter],
    offsets: Sequence[int],
    *,
    first_layer: int,
    recompute: bool,
) -> torch.Tensor:
    """Normed hidden states [U, features] of `rows` (ascending, distinct) after layers `first_layer` to the last.

    hidden [1, T, features] enters layer `first_layer`; rows of `adapters[r]` are offsets[r] to offsets[r + 1]. With
    `recompute` a layer keeps its input alone and is run again, adapters and all, in the backward pass.
    """
    rotary = decoder.rotary_emb(hidden, position_ids=positions[None])

    def layer(block: Any, states: torch.Tensor) -> torch.Tensor:
        with router.route(adapters, offsets):
            out: torch.Tensor = block(states, attention_mask=None, position_embeddings=rotary, plan=plan)
        return out

    def last(block: Any, states: torch.Tensor) -> torch.Tensor:
        if {name for name, _ in block.named_children()} != _PLAIN:
            return layer(block, states)[0, rows]
        with router.route(adapters, offsets):
            attended, _ = block.self_attn(
                hidden_states=block.input_layernorm(states),
                attention_mask=None,
                position_embeddings=rotary,
                plan=plan,
            )
        mine = (states + attended)[0, rows]
        with router.route(adapters, _offsets_within(rows, offsets)):
            return mine + block.mlp(block.post_attention_layernorm(mine))

    *blocks, final = decoder.layers[first_layer:]
    for block in blocks:
        hidden = _run(layer, block, hidden, recompute=recompute)
    scored: torch.Tensor = decoder.norm(_run(last, final, hidden, recompute=recompute))
    return scored


def _run(
    function: Callable[[Any, torch.Tensor], torch.Tensor], block: Any, hidden: torch.Tensor, *, recompute: bool
) -> torch.Tensor:
    if recompute and torch.is_grad_enabled():
        again: torch.Tensor = checkpoint(function, block, hidden, use_reentrant=False, preserve_rng_state=False)
        return again
    return function(block, hidden)


def _offsets_within(rows: torch.Tensor, offsets: Sequence[int]) -> list[int]:
    """Where each role's rows begin among the ascending `rows`."""
    bounds = torch.tensor(list(offsets), device=rows.device)
    return [int(place) for place in torch.searchsorted(rows, bounds)]
