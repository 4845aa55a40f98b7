"""AdamW with one parameter group per role, and the learning-rate schedule.

A role without tokens in a step, or with no advantage but 0, must not move: with zero gradients Adam would still apply
its momentum (59 % of a normal step was measured), and lr = 0 would still decay its moments. So its group is left out of
the step altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch


class RoleAdamW(torch.optim.AdamW):
    """Steps the groups marked `active`, their gradients times the group's `scale`: each role is clipped on its own.

    ZeRO calls `step` once per group, plain data parallelism once for all.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__([{**group, "active": False, "scale": 1.0} for group in groups], **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        everything = self.param_groups
        self.param_groups = [group for group in everything if group["active"] and group["params"]]
        try:
            for group in self.param_groups:
                if group["scale"] != 1.0:
                    torch._foreach_mul_([p.grad for p in group["params"] if p.grad is not None], group["scale"])
            if self.param_groups:
                super().step(closure)
        finally:
            self.param_groups = everything


def learning_rate(
    step: int,
    total: int,
    *,
    peak: float,
    final: float,
    warmup: int,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> float:
    """Linear warm-up over `warmup` steps, then `peak`, or a cosine from it to `final` · peak at step `total`.

    `step` counts from 0.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
