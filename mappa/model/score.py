"""Log-probs of a given token sequence under the base and at most one adapter: one plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import Base
from mappa.model.lora import Adapter, Router


def sequence_logprobs(base: Base, router: Router, adapter: Adapter | None, ids: Sequence[int]) -> torch.Tensor:
    """log p(ids[i] | ids[:i]) for i from 1, [len(ids) - 1] fp32, at temperature 1. No gradients."""
    tokens = torch.tensor(ids)
    adapters = [] if adapter is None else [{name: _as(base.dtype, pair) for name, pair in adapter.items()}]
    with torch.inference_mode(), router.route(adapters, [0, len(ids)] if adapters else [0]):
        plan = TreePlan([len(ids)], [-1])
        positions = torch.arange(len(ids))
        hidden = decode_layers(base.decoder, base.decoder.embed_tokens(tokens)[None], positions, plan)
        logits = F.linear(base.decoder.norm(hidden[0, :-1]), base.head)
        return torch.log_softmax(logits.float(), -1).gather(1, tokens[1:, None])[:, 0]


def _as(dtype: torch.dtype, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pair[0].detach().to(dtype), pair[1].detach().to(dtype)
