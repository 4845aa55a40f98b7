"""One episode as it happens: what a system does on its stage, journaled, measured and scored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach import ActionContext, Coach
from mappa.errors import TeamError
from mappa.journal import Journal
from mappa.model.base import Base
from mappa.sampler import Sampler
from mappa.sampler.outside import OutsideModel
from mappa.systems import CodeOf
from mappa.tasks import inspect, repair
from mappa.types import Action, Episode, Message, Role, SamplingParams, Task, Workspace


class Services(Struct, frozen=True, kw_only=True):
    """What every episode works with."""

    base: Base
    sampler: Sampler
    coach: Coach | None
    """None where nothing is to be scored: an evaluation asks no coach."""
    journal: Journal
    open_workspace: Callable[[], Awaitable[Workspace]]
    adapters: Mapping[str, str]
    """Adapter name by role, as of this batch."""
    temperature: float
    repair: bool
    outside: Mapping[str, OutsideModel] = {}
    """Models that play roles from outside, by name."""
    max_actions: int = 64


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
        self._said: dict[tuple[str, int], list[Message]] = {}  # what outside models go on from: they have no token ids
        self._repaired = False

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        action = await self._generate(role, messages, after)
        ordinal = len(self.actions)
        self.actions.append(action)
        self._services.journal.add_action(self._episode.id, ordinal, action)
        found = code(action.text) if code is not None else None
        if found is not None:
            action = replace(action, execution=await self._workspace.run(found))
        evidence = await inspect(self.task, role, self._workspace, self._services.open_workspace, action)
        self.actions[ordinal] = action = replace(action, evidence=evidence)
        self._services.journal.add_action(self._episode.id, ordinal, action)
        if self._services.coach is not None:
            context = ActionContext(
                task=self.task, role=role, action=action, files=self.files(), upstream=self._upstream(ordinal)
            )
            self._scoring.append(asyncio.create_task(self._score(self._services.coach, ordinal, context)))
        return action

    def files(self) -> dict[str, int]:
        return dict(self._workspace.files())

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

    async def _generate(self, role: Role, messages: Sequence[Message], after: Action | None) -> Action:
        if sum(self._turns.values()) + len(self._turns) >= self._services.max_actions:
            raise TeamError(f"the system wants more than {self._services.max_actions} actions (rollout.max_actions)")
        if after is not None and after.role != role.name:
            raise TeamError(f"role {role.name!r} cannot go on from an action of {after.role!r}; show it as a message")
        turn = self._turns[role.name] = self._turns.get(role.name, -1) + 1
        params = SamplingParams(
            temperature=self._services.temperature,
            max_tokens=role.max_tokens,
            stop=role.stop,
            seed=derive_seed(self._episode.seed, role.name, turn),
        )
        if role.model:
            return await self._ask_outside(role, turn, messages, after, params)
        prompt = prompt_of(self._services.base, messages, after)
        adapter = self._services.adapters.get(role.plays)
        if adapter is None:
            raise TeamError(f"role {role.name!r} acts but is not among the system's roles; name it there")
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
            text=self._services.base.opening(prompt) + self._services.base.text(generation.output_ids),
            repaired=self._repaired,
        )

    async def _ask_outside(
        self, role: Role, turn: int, messages: Sequence[Message], after: Action | None, params: SamplingParams
    ) -> Action:
        model = self._services.outside.get(role.model)
        if model is None:
            raise TeamError(
                f"role {role.name!r} is played by {role.model!r}, but the config has no [outside.{role.model}]"
            )
        said = [*(self._said[role.name, after.turn] if after is not None else []), *messages]
        written = await model.write(said, params)
        self._said[role.name, turn] = [*said, Message("assistant", written.text)]
        return Action(
            role=role.name,
            turn=turn,
            adapter=f"outside/{role.model}",
            prompt_ids=(),
            output_ids=(),
            logprobs=(),
            finish_reason=written.finish_reason,
            text=written.text,
            repaired=self._repaired,
        )

    async def _score(self, coach: Coach, ordinal: int, context: ActionContext) -> None:
        verdict = await coach.score(context)
        self.actions[ordinal] = replace(self.actions[ordinal], verdict=verdict)
        self._services.journal.add_verdict(self._episode.id, ordinal, verdict)

    def _upstream(self, ordinal: int) -> dict[str, bool]:
        return {a.role: a.evidence.success for a in self.actions[:ordinal] if a.evidence is not None}


def prompt_of(base: Base, messages: Sequence[Message], after: Action | None) -> tuple[int, ...]:
    """The exact context of an action: a chat, or what an earlier action saw and wrote and then `messages`."""
    if after is None:
        return base.prompt_ids(list(messages))
    return base.continued_ids(after.prompt_ids + after.output_ids, list(messages))


def derive_seed(*parts: object) -> int:
    """A seed that depends on its parts alone, not on the order in which things run."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
