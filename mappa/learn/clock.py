"""Where a step's time goes, by part of the model. Host time: on a GPU what is measured is the launching."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mappa.model.attention import Plan

PARTS = ("attention", "linear", "lm_head", "optimizer", "other")


class Clock:
    """Seconds by name. `shares` splits what was measured as a whole into PARTS."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def parts(self) -> dict[str, float]:
        """PARTS in seconds. 'passes' and 'step' are measured around everything; linear layers and what is fused with
        them are what attention and the output head leave of the passes."""
        known = {name: self.seconds.get(name, 0.0) for name in ("attention", "lm_head", "optimizer")}
        passes = self.seconds.get("passes", 0.0)
        linear = max(0.0, passes - known["attention"] - known["lm_head"])
        other = max(0.0, self.seconds.get("step", 0.0) - passes - known["optimizer"])
        return {**known, "linear": linear, "other": other}


class TimedPlan:
    """A plan whose attention is measured, backward pass included."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._mark = 0.0

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        with self._clock.measure("attention"):
            out = self._plan.attend(layer, query, key, value, scale)
        if out.requires_grad:
            # Autograd runs all of attention's own nodes between its output's gradient and the last of its inputs'.
            out.register_hook(self._begin)
            for tensor in (query, key, value):
                if tensor.requires_grad:
                    tensor.register_hook(self._end)
        return out

    def _begin(self, gradient: torch.Tensor) -> None:
        self._mark = time.perf_counter()

    def _end(self, gradient: torch.Tensor) -> None:
        now = time.perf_counter()
        self._clock.add("attention", now - self._mark)
        self._mark = now
