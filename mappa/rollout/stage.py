"""One episode as it happens: what a system does on its stage, journaled before it is used, measured and scored.

Of a resumed episode the journaled actions are handed out again instead of being generated, run or scored anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach import ActionContext, Coach, Standing
from mappa.errors import CoachError, TeamError
from mappa.journal import Entry, Journal, Observation
from mappa.rollout.budget import Budget, Draining, WorkLeft
from mappa.rollout.deadline import Deadline
from mappa.rollout.place import OpenWorkspace, Place
from mappa.rollout.published import Published
from mappa.rollout.recall import Recall
from mappa.rollout.timeline import Measuring, Timeline
from mappa.sampler import Sampler
from mappa.sampler.outside import OutsideModel
from mappa.systems import CodeOf
from mappa.tasks import inspect, public_files
from mappa.types import Action, Episode, Message, Role, SamplingParams, Task


class Text(Protocol):
    """Between messages and token ids; `model.Base` is one."""

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]: ...

    def continued_ids(self, context: tuple[int, ...], messages: list[Message]) -> tuple[int, ...]: ...

    def opening(self, prompt: tuple[int, ...]) -> str: ...

    def text(self, ids: tuple[int, ...]) -> str: ...


class Services(Struct, frozen=True, kw_only=True):
    """What every episode works with."""

    base: Text
    sampler: Sampler
    coach: Coach
    journal: Journal
    open_workspace: OpenWorkspace
    timeline: Timeline
    published: Published
    budget: Budget
    work: WorkLeft
    longest_first: bool
    outside: Mapping[str, OutsideModel] = {}
    """Models that play roles from outside, by name."""
    standing: Callable[[int, str, str], Standing | None] = lambda step, role, kind: None
    """What the coach is shown of its own past, by step, role and kind of task."""


class Rules(Struct, frozen=True, kw_only=True):
    """How the episodes of one batch are run."""

    temperature: float
    repair: bool
    deadline: float
    """Seconds from an episode's first generation to its end, and at most until it asks for one."""
    oldest: int = 0
    """Adapter version that its actions must have at least."""
    score: bool = True
    """False: no coach is asked, as in an evaluation."""
    max_actions: int = 64


class EpisodeStage:
    """Implements `systems.Stage` for one episode. The coach works in the background; `verdicts` waits for it."""

    def __init__(
        self,
        episode: Episode,
        task: Task,
        services: Services,
        rules: Rules,
        deadline: Deadline,
        recalled: Mapping[int, Entry],
    ) -> None:
        """`recalled` holds the episode's journaled actions by ordinal."""
        self.task = task
        self.generated = 0
        """Tokens sampled here; journaled ones are not."""
        self.place = Place(task, services.open_workspace)
        self._episode = episode
        self._services = services
        self._rules = rules
        self._deadline = deadline
        self._recall = Recall(episode.id, recalled)
        self._actions: dict[int, Action] = {}
        self._scoring: list[asyncio.Task[None]] = []
        self._said: dict[tuple[str, int], list[Message]] = {}  # all that a role saw and wrote, by role and turn
        self._acting: set[asyncio.Task[object]] = set()
        self._busy = 0.0
        self._repaired = self._refused = False
        self._files: dict[str, int] | None = None

    @property
    def actions(self) -> tuple[Action, ...]:
        """In the order in which they were begun."""
        return tuple(self._actions[ordinal] for ordinal in sorted(self._actions))

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        if self._recall.begun >= self._rules.max_actions:
            self._refuse(f"the system wants more than {self._rules.max_actions} actions (rollout.max_actions)")
        if after is not None and after.role != role.name:
            raise TeamError(f"role {role.name!r} cannot go on from an action of {after.role!r}; show it as a message")
        said = [*(self._said[role.name, after.turn] if after is not None else []), *messages]
        base = self._services.base  # an outside model goes on from messages: of what it wrote there are no tokens
        prompt = prompt_of(base, said, None) if role.model else prompt_of(base, messages, after)
        ordinal, turn, known = self._recall.next(role, prompt, parallel=bool(self._acting))
        me = asyncio.current_task()
        assert me is not None
        self._acting.add(me)
        try:
            return await self._act(role, Asked(ordinal, turn, prompt, said), known, code)
        finally:
            self._acting.discard(me)

    async def _act(self, role: Role, asked: Asked, known: Entry | None, code: CodeOf | None) -> Action:
        ordinal, turn = asked.ordinal, asked.turn
        # In `_actions` before anything is awaited: it is what the journal has, even if the deadline comes right then.
        if known is not None:
            self._deadline.begin()
            action = self._actions[ordinal] = known.action
            await asyncio.sleep(0)  # what began beside it begins beside it again
        else:
            generate = self._ask_outside if role.model else self._generate
            action = self._actions[ordinal] = await generate(role, asked)
            self._services.journal.add_action(self._episode.id, ordinal, action)
            await self._services.journal.written()
        self._said[role.name, turn] = [*asked.messages, Message("assistant", action.text)]
        if known is not None and known.observation is not None:
            observation = known.observation
            self.place.owe(observation)
        else:
            observation = await self._observe(role, action, code)
            action = replace(action, execution=observation.execution, evidence=observation.evidence)
            self._actions[ordinal] = action
            self._services.journal.add_result(self._episode.id, ordinal, observation)
            await self._services.journal.written()
        self._files = observation.files
        if action.verdict is None and self._rules.score:
            context = context_of(self.task, role, ordinal, self._actions, observation, asked.messages)
            standing = self._services.standing(self._episode.step, role.name, self.task.kind)
            context = replace(context, standing=standing) if standing is not None else context
            self._scoring.append(asyncio.create_task(self._score(ordinal, context)))
        return action

    def files(self) -> dict[str, int]:
        return dict(self._files if self._files is not None else public_files(self.task))

    async def repair(self, role: Role) -> bool:
        if not self._rules.repair:
            return False
        self.place.repair(role.produces)
        self._repaired = True
        return True

    async def verdicts(self) -> None:
        """The system is done: return when every action has its verdict. Raises JournalError if the journal has more."""
        self._recall.end()
        await self.scored()

    async def scored(self) -> None:
        """Return when the coach is done with every action so far. Raises what kept one from getting its verdict, once
        all have ended: a reply that is under way is paid for.
        """
        for found in await asyncio.gather(*self._scoring, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found

    async def close(self) -> None:
        """Leave nothing running and no workspace behind."""
        acting = self._acting - {asyncio.current_task()}  # what a system did in parallel, and it failed meanwhile
        for task in (*self._scoring, *acting):
            task.cancel()
        await asyncio.gather(*self._scoring, *acting, return_exceptions=True)
        self.place.close()
        self._services.work.learn(self.task.id, len(self._actions), self._busy)

    async def _generate(self, role: Role, asked: Asked) -> Action:
        """Once there is a version that is fresh enough, and room. Raises Draining."""
        services, prompt, turn = self._services, asked.prompt, asked.turn
        tokens = len(prompt) + role.max_tokens
        self._deadline.queued()
        with self._span("queue", role, turn):
            await services.published.at_least(self._rules.oldest)
            await services.budget.take(tokens, self._priority())
        try:
            self._deadline.begin()
            adapter = services.published.name(role.plays)
            if adapter is None:
                raise TeamError(f"role {role.name!r} acts but is not among the system's roles; name it there")
            with self._span("generate", role, turn) as span:
                generation = await services.sampler.generate(
                    prompt, adapter, self._params(role, turn), f"{self._episode.id}/{role.name}/{turn}"
                )
        finally:
            services.budget.give_back(tokens)
        self._busy += span.seconds
        self.generated += len(generation.output_ids)
        return Action(
            role=role.name,
            turn=turn,
            adapter=adapter,
            prompt_ids=prompt,
            output_ids=generation.output_ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            text=services.base.opening(prompt) + services.base.text(generation.output_ids),
            repaired=self._repaired,
        )

    async def _ask_outside(self, role: Role, asked: Asked) -> Action:
        """Its endpoint bounds how much is asked at once. Raises Draining."""
        model = self._services.outside.get(role.model)
        if model is None:
            raise TeamError(
                f"role {role.name!r} is played by {role.model!r}, but the config has no [outside.{role.model}]"
            )
        self._services.budget.check()
        self._deadline.begin()
        with self._span("outside", role, asked.turn) as span:
            written = await model.write(asked.messages, self._params(role, asked.turn))
        self._busy += span.seconds
        return Action(
            role=role.name,
            turn=asked.turn,
            adapter=f"outside/{role.model}",
            prompt_ids=asked.prompt,
            output_ids=(),
            logprobs=(),
            finish_reason=written.finish_reason,
            text=written.text,
            repaired=self._repaired,
        )

    def _refuse(self, why: str) -> NoReturn:
        """Raises TeamError; and where a system caught that and goes on, what it is less likely to catch."""
        if self._refused:
            raise asyncio.CancelledError(why)
        self._refused = True
        raise TeamError(why)

    def _params(self, role: Role, turn: int) -> SamplingParams:
        return SamplingParams(
            temperature=self._rules.temperature,
            max_tokens=role.max_tokens,
            stop=role.stop,
            seed=derive_seed(self._episode.seed, role.name, turn),
        )

    async def _observe(self, role: Role, action: Action, code: CodeOf | None) -> Observation:
        """Run its code, and measure what it left."""
        found = code(action.text) if code is not None else None
        with self._span("tool", role, action.turn) as span:
            workspace = await self.place.workspace()
            execution = await workspace.run(found) if found is not None else None
            action = replace(action, execution=execution)
            evidence = await inspect(self.task, role, workspace, self._services.open_workspace, action)
        self._busy += span.seconds
        return Observation(code=found, execution=execution, evidence=evidence, files=dict(workspace.files()))

    async def _score(self, ordinal: int, context: ActionContext) -> None:
        """Raises Draining where the coach has stopped: the action is scored when the run goes on."""
        coach = self._services.coach
        with self._span("coach", context.role, context.action.turn):
            try:
                verdict = await coach.score(context)
            except CoachError as error:
                if coach.stopped is not None:
                    raise Draining from error
                raise
        if verdict.score is None and coach.stopped is not None:
            raise Draining
        self._services.journal.add_verdict(self._episode.id, ordinal, verdict)
        self._actions[ordinal] = replace(self._actions[ordinal], verdict=verdict)

    def _priority(self) -> tuple[float, ...]:
        """Earlier steps first, since the learner waits for them; within a step whoever has most before it."""
        done = self._recall.begun - 1
        longest = self._services.work.seconds(self.task.id, done) if self._services.longest_first else 0.0
        return self._episode.step, -longest

    def _span(self, kind: str, role: Role, turn: int) -> Measuring:
        return self._services.timeline.span(kind, self._episode.id, role.name, turn)


class Asked(Struct, frozen=True):
    """An action that is about to be taken."""

    ordinal: int
    turn: int
    prompt: tuple[int, ...]
    messages: Sequence[Message]
    """All that the role sees."""


def context_of(
    task: Task,
    role: Role,
    ordinal: int,
    actions: Mapping[int, Action],
    observation: Observation,
    messages: Sequence[Message] = (),
) -> ActionContext:
    """What the coach is shown of an episode's action; the same while it happens and when it is scored again later, but
    for the `messages` it saw, of which the journal has the tokens alone."""
    earlier = tuple(actions[place] for place in sorted(actions) if place < ordinal)
    return ActionContext(
        task=task,
        role=role,
        action=replace(actions[ordinal], verdict=None),
        files=observation.files,
        upstream={action.role: action.evidence.success for action in earlier if action.evidence is not None},
        messages=tuple(messages),
        earlier=earlier,
    )


def prompt_of(base: Text, messages: Sequence[Message], after: Action | None) -> tuple[int, ...]:
    """The exact context of an action: a chat, or what an earlier action saw and wrote and then `messages`."""
    if after is None:
        return base.prompt_ids(list(messages))
    return base.continued_ids(after.prompt_ids + after.output_ids, list(messages))


def derive_seed(*parts: object) -> int:
    """A seed that depends on its parts alone, not on the order in which things run."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
