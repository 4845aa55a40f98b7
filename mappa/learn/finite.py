"""A NaN, an Inf or a foreign loss that fails stops a step before the update: named, on all ranks, its batch kept for
replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from mappa.config import LearnConfig, role_setting
from mappa.errors import LearnError, NonFiniteError
from mappa.learn import ranks
from mappa.learn.engine import gradients
from mappa.learn.optimizer import RoleAdamW
from mappa.types import Sample


class FiniteCheck:
    """The first thing of a step that was not finite, or failed, on this rank. `settle` raises it on all of them: until
    then the passes go on, as every rank reduces as often as the others."""

    def __init__(self, samples: Sequence[Sample], step: int, folder: Path | None) -> None:
        self._samples = samples
        self._step = step
        self._folder = folder
        self._fault: LearnError | None = None

    def check(self, quantity: str, values: Sequence[torch.Tensor], samples: Sequence[Sample] | None = None) -> None:
        """Look at one tensor per sample, of the whole batch or of `samples`."""
        if self._fault is not None or not values or bool(torch.cat(list(values)).isfinite().all()):
            return
        for sample, tensor in zip(self._samples if samples is None else samples, values, strict=True):
            if not bool(tensor.isfinite().all()):
                place = int((~tensor.isfinite()).nonzero()[0])
                self.fail(
                    f"the {quantity} of role {sample.role!r}, sample {sample.source or '(unnamed)'}, is "
                    f"{tensor[place].item()} at its action token {place}"
                )
                return

    def fail(self, fault: str) -> None:
        self.refuse(NonFiniteError(fault))

    def refuse(self, error: LearnError) -> None:
        """Have `settle` raise this, unless something was found before."""
        self._fault = self._fault or error

    def settle(self) -> None:
        """Return if all is well on every rank. Raises what was found on all of them otherwise (collective)."""
        if ranks.maximum(int(self._fault is not None)) == 0:
            return
        kept = self._keep()
        if (fault := self._fault) is not None:
            fault.args = (f"{fault}; the update was not made{kept}",)
        ranks.raise_together(fault)

    def _keep(self) -> str:
        """Every rank keeps its share: `msgspec.msgpack.decode(data, type=list[Sample])` reads it back."""
        if self._folder is None:
            return ""
        path = self._folder / f"nonfinite-step-{self._step + 1:06d}-rank-{ranks.rank()}.msgpack"
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.msgpack.encode(list(self._samples)))
        return f"; the batch is in {path}"


def clip_scales(engine: Any, optimizer: RoleAdamW, config: LearnConfig, finite: FiniteCheck) -> dict[str, float]:
    """Set every group's `scale` so that each role's gradient is clipped on its own; the norms before (collective).

    All roles are looked at before any is updated. Raises NonFiniteError, or what else was found in the passes.
    """
    squared = torch.zeros(len(config.roles), dtype=torch.float64)
    for index, parts in enumerate(gradients(engine, optimizer)):
        for part in parts:
            squared[index] += part.double().square().sum().cpu()
    if config.zero_stage > 0:  # every rank holds a part of the gradient
        squared = ranks.add(squared)
    norms = {}
    for group, value in zip(optimizer.param_groups, squared.tolist(), strict=True):
        norm = math.sqrt(value) if math.isfinite(value) else math.inf
        limit = role_setting(config, group["name"], "clip_norm")
        group["scale"] = limit / (norm + 1e-6) if limit and norm > limit else 1.0
        norms[group["name"]] = norm
        if group["active"] and not math.isfinite(norm):
            finite.fail(f"the gradient of role {group['name']!r} holds a NaN or Inf")
    finite.settle()
    return norms
