"""One episode as it happens: what a system does on its stage, journaled, measured and scored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach import ActionContext, Coach
from mappa.journal import Journal
from mappa.model.base import Base
from mappa.sampler import Sampler
from mappa.systems import CodeOf
from mappa.tasks import inspect, repair
from mappa.types import Action, Episode, Message, Role, SamplingParams, Task, Workspace


class Services(Struct, frozen=True, kw_only=True):
    """What every episode works with."""

    base: Base
    sampler: Sampler
    coach: Coach
    journal: Journal
    open_workspace: Callable[[], Awaitable[Workspace]]
    adapters: Mapping[str, str]
    """Adapter name by role, as of this batch."""
    temperature: float
    repair: bool


class EpisodeStage:
    """Implements `systems.Stage` for one episode. The coach works in the background; `verdicts` waits for it."""

    def __init__(self, episode: Episode, task: Task, workspace: Workspace, services: Services) -> None:
        self.task = task
        self.actions: list[Action] = []
        self._episode = episode
        self._workspace = workspace
        self._services = services
        self._scoring: list[asyncio.Task[None]] = []
        self._turns: dict[str, int] = {}
        self._repaired = False

    async def act(self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None) -> Action:
        action = await self._generate(role, messages)
        ordinal = len(self.actions)
        self.actions.append(action)
        self._services.journal.add_action(self._episode.id, ordinal, action)
        found = code(action.text) if code is not None else None
        if found is not None:
            action = replace(action, execution=await self._workspace.run(found))
        evidence = await inspect(self.task, role, self._workspace, self._services.open_workspace)
        self.actions[ordinal] = action = replace(action, evidence=evidence)
        self._services.journal.add_action(self._episode.id, ordinal, action)
        context = ActionContext(
            task=self.task, role=role, action=action, files=dict(self._workspace.files()), upstream=self._upstream()
        )
        self._scoring.append(asyncio.create_task(self._score(ordinal, context)))
        return action

    async def repair(self, role: Role) -> bool:
        if not self._services.repair:
            return False
        repair(self.task, self._workspace, role.produces)
        self._repaired = True
        return True

    async def verdicts(self) -> None:
        """Return when every action so far has its verdict."""
        await asyncio.gather(*self._scoring)

    def cancel(self) -> None:
        for task in self._scoring:
            task.cancel()

    async def _generate(self, role: Role, messages: Sequence[Message]) -> Action:
        turn = self._turns[role.name] = self._turns.get(role.name, -1) + 1
        prompt = self._services.base.prompt_ids(list(messages))
        adapter = self._services.adapters[role.name]
        params = SamplingParams(
            temperature=self._services.temperature,
            max_tokens=role.max_tokens,
            stop=role.stop,
            seed=derive_seed(self._episode.seed, role.name, turn),
        )
        generation = await self._services.sampler.generate(
            prompt, adapter, params, f"{self._episode.id}/{role.name}/{turn}"
        )
        return Action(
            role=role.name,
            turn=turn,
            adapter=adapter,
            prompt_ids=prompt,
            output_ids=generation.output_ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            text=self._services.base.text(generation.output_ids),
            repaired=self._repaired,
        )

    async def _score(self, ordinal: int, context: ActionContext) -> None:
        verdict = await self._services.coach.score(context)
        self.actions[ordinal] = replace(self.actions[ordinal], verdict=verdict)
        self._services.journal.add_verdict(self._episode.id, ordinal, verdict)

    def _upstream(self) -> dict[str, bool]:
        return {a.role: a.evidence.success for a in self.actions[:-1] if a.evidence is not None}


def derive_seed(*parts: object) -> int:
    """A seed that depends on its parts alone, not on the order in which things run."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
