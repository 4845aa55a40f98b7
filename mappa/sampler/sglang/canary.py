"""What the learner says of a known prompt: a server that says the same computes the same."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from statistics import fmean

import torch

from mappa.model.base import Base
from mappa.model.lora import Adapter, Router
from mappa.model.score import sequence_logprobs

_FLOAT32_TOLERANCE, _BFLOAT16_TOLERANCE = 1e-3, 0.15


class Canary:
    """`prompts` holds, by role, the tokens whose log-probs are compared: best the beginning of what it is asked.

    Scoring runs the learner's own layers, so no pass of the learner may go on meanwhile. That is why a score is kept
    with what was published: servers that are restarted prove themselves against it.
    """

    def __init__(
        self, base: Base, router: Router, prompts: Mapping[str, tuple[int, ...]], tolerance: float = 0.0
    ) -> None:
        self._base = base
        self._router = router
        self._prompts = prompts
        self._lock = asyncio.Lock()
        exact = base.dtype == torch.float32
        self.tolerance = tolerance or (_FLOAT32_TOLERANCE if exact else _BFLOAT16_TOLERANCE)

    async def score(self, role: str | None, adapter: Adapter | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The role's prompt and what the learner says of it under `adapter`; the base's word where both are None."""
        ids = self._prompts[role] if role is not None else next(iter(self._prompts.values()))
        async with self._lock:
            scores = await asyncio.to_thread(sequence_logprobs, self._base, self._router, adapter, ids)
        return ids, tuple(scores.tolist())


def distance(expected: tuple[float, ...], found: list[float]) -> float:
    """Mean distance in nats; infinite where a number is missing or is none."""
    if len(found) != len(expected) or not all(map(math.isfinite, found)):
        return math.inf
    return fmean(abs(a - b) for a, b in zip(expected, found, strict=True))
