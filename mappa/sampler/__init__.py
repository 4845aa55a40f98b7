"""Who generates: token ids in, token ids and the log-probs of exactly the sampling distribution out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mappa.types import Generation, SamplingParams

if TYPE_CHECKING:
    import torch


class Sampler(Protocol):
    """Serves every role's adapter from one base. Adapter names carry their version and are never reused."""

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        """Sample one continuation. Raises SamplerError; AdapterError if `adapter` was never published or is retired."""
        ...

    async def publish(self, role: str, version: int, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
        """Make a version available and return its name, `role@version`. The tensors are copied."""
        ...

    async def retire(self, adapter: str) -> None:
        """Forget a version. Requests already running with it finish."""
        ...

    async def abort(self, prefix: str) -> None:
        """End every request whose id starts with `prefix`; what it has written so far is returned as 'abort'."""
        ...

    async def health(self) -> None:
        """Return if requests are being served; raise SamplerError if not."""
        ...


def adapter_name(role: str, version: int) -> str:
    """`modeler@12`"""
    return f"{role}@{version}"
