"""AdamW with one parameter group per role, and the learning-rate schedule.

A role without tokens in a step must not move: with zero gradients Adam would still apply its momentum (59 % of a
normal step was measured), and lr = 0 would still decay its moments. So its group is left out of the step altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from mappa.errors import NonFiniteError


class RoleAdamW(torch.optim.AdamW):
    """Steps the groups marked `active`, each clipped on its own; `norms` collects their gradient norms before clipping.

    ZeRO calls `step` once per group, plain data parallelism once for all: whoever reads `norms` clears it first.

    `sharded`: every rank holds a part of each group's gradient (ZeRO 1 and up), so norms are summed over ranks.
    """

    def __init__(self, groups: list[dict[str, Any]], *, clip_norm: float, sharded: bool, **settings: Any) -> None:
        super().__init__([{**group, "active": False} for group in groups], **settings)
        self.clip_norm = clip_norm
        self.sharded = sharded
        self.norms: dict[str, float] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        everything = self.param_groups
        self.param_groups = [group for group in everything if group["active"] and group["params"]]
        try:
            if self.param_groups:
                self.norms.update({group["name"]: self._clip(group) for group in self.param_groups})
                super().step(closure)
        finally:
            self.param_groups = everything

    def _clip(self, group: dict[str, Any]) -> float:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        squared = torch.stack([g.double().square().sum() for g in gradients]).sum()
        if self.sharded and dist.is_initialized():
            dist.all_reduce(squared)
        norm = math.sqrt(float(squared)) if squared.isfinite() else math.inf
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient of role {group['name']!r} holds a NaN or Inf; nothing was updated")
        if self.clip_norm and norm > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / (norm + 1e-6))
        return norm


def learning_rate(step: int, total: int, *, peak: float, final: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from `peak` to `final` · peak at the last of `total` steps.

    `step` counts from 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
