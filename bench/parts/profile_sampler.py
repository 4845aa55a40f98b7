"""Between the real loop and the simulated node: its servers as a sampler, and a coach that is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from bench.parts.profile_engine import Engine
from bench.parts.profile_workload import Drawn
from mappa.sampler.sglang.routing import blocks_of, choose
from mappa.systems import System
from mappa.systems.stage import CodeOf, ForwardingStage, Stage
from mappa.types import Action, Generation, Message, Role, SamplingParams

if TYPE_CHECKING:
    import torch


class NodeSampler:
    """Implements `Sampler` over the simulated servers, with the real choice among them."""

    def __init__(self, engines: Sequence[Engine], draw: Callable[[str], Drawn]) -> None:
        """`draw` says what a request, by its id, writes."""
        self._engines, self._draw = engines, draw

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        drawn, blocks = self._draw(request_id), blocks_of(adapter, prompt_ids)
        role = adapter.rpartition("@")[0]
        engine = choose([engine for engine in self._engines if not engine.roles or role in engine.roles], blocks)
        await engine.generate(adapter, prompt_ids, drawn.ids, blocks)
        return Generation(
            output_ids=drawn.ids,
            logprobs=(-0.5,) * len(drawn.ids),
            finish_reason="stop" if drawn.finished else "length",
        )

    async def publish(self, role: str, version: int, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
        return f"{role}@{version}"

    async def retire(self, adapter: str) -> None: ...

    async def abort(self, prefix: str) -> None: ...

    async def health(self) -> None: ...


class InlineCoach:
    """A system whose episodes wait for each verdict."""

    def __init__(self, system: System, seconds: Callable[[tuple[int, ...]], float]) -> None:
        """`seconds` says how long that of an action with these tokens takes."""
        self.roles = system.roles
        self._system, self._seconds = system, seconds

    async def run(self, stage: Stage) -> None:
        await self._system.run(_InlineStage(stage, self._seconds))


class _InlineStage(ForwardingStage):
    def __init__(self, stage: Stage, seconds: Callable[[tuple[int, ...]], float]) -> None:
        super().__init__(stage)
        self._seconds = seconds

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        action = await super().act(role, messages, code=code, after=after)
        await asyncio.sleep(self._seconds(action.output_ids))
        return action
