"""A team at work: its sampler, sandbox and coach, opened together on the rollout loop's thread. Rank 0 has one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach import Standing, load_coach, writer_of
from mappa.coach.watch import Review
from mappa.config import Config
from mappa.errors import ConfigError
from mappa.journal import Journal, Span, read_episodes
from mappa.model.base import Base
from mappa.model.lora import Adapter, RoleLinear, Router
from mappa.rollout.budget import Budget, WorkLeft
from mappa.rollout.published import Published
from mappa.rollout.purchases import JournalStore
from mappa.rollout.review import Reviews
from mappa.rollout.rewrite import Rewriter
from mappa.rollout.scheduler import Batch, Count, Job, Scheduler
from mappa.rollout.stage import Rules, Services
from mappa.rollout.thread import LoopThread
from mappa.rollout.timeline import LagMeter, Timeline
from mappa.sampler.choice import open_sampler
from mappa.sampler.outside import OutsideModel
from mappa.sandbox import Sandbox
from mappa.systems import System, chat
from mappa.types import Episode, Task


class Measured(Struct, frozen=True):
    """What the rollouts came to since they were last measured."""

    spans: list[Span]
    lag: float
    """Seconds by which the event loop was late, 99th percentile."""
    count: Count


class Team:
    """Runs episodes with the adapters that were last published.

    >>> with Team(config, system, base, router, layers, journal, threads=2) as team:
    ...     team.publish(0, adapters)
    ...     team.begin("train-1", jobs, phase="train", temperature=0.6, repair=True)
    ...     episodes = team.finish("train-1")
    """

    def __init__(
        self,
        config: Config,
        system: System,
        base: Base,
        router: Router,
        layers: Mapping[str, RoleLinear],
        journal: Journal,
        *,
        threads: int,
        notice: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self.timeline = Timeline(journal)
        self._config = config
        self._system = system
        self._base = base
        self._journal = journal
        self._lag = LagMeter()
        self._seen = Count()
        openings = {role.plays: base.prompt_ids(chat(role, "Go.")) for role in system.roles if role.plays}
        self._sampling = open_sampler(config, base, router, layers, openings, threads=threads, notice=notice)
        self._thread = LoopThread(config.rollout.patience)
        self._stack = AsyncExitStack()
        self._outside: dict[str, OutsideModel] = {}
        self._reviews: Reviews | None = None

    def __enter__(self) -> Team:
        try:
            self._thread.run(self._open())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def publish(self, version: int, adapters: Mapping[str, Adapter]) -> None:
        """Make every role's weights available as `adapter@version`, route new actions to them, retire the last ones."""
        self._thread.run(self._publish(version, adapters))

    def begin(
        self,
        key: str,
        jobs: Sequence[Job],
        *,
        phase: str,
        temperature: float,
        repair: bool,
        oldest: int = 0,
        score: bool = True,
        done: Callable[[Episode], None] = lambda episode: None,
    ) -> None:
        """Start the jobs, which are all of one step, or go on with them where the journal has them. Returns at once.

        Their actions are sampled from version `oldest` or a newer one. Without `score` no coach is asked. `done` is
        called with each as it ends, on the loop's thread.
        """
        batch = Batch(
            key=key,
            phase=phase,
            jobs=jobs,
            rules=Rules(
                temperature=temperature,
                repair=repair,
                deadline=self._config.rollout.deadline,
                oldest=oldest,
                score=score,
                max_actions=self._config.rollout.max_actions,
            ),
            recalled=self._journal.recall(phase, jobs[0].step),
            done=done,
        )
        self._thread.call(lambda: self._scheduler.begin(batch))

    def finish(self, key: str) -> list[Episode] | None:
        """Wait for the end of what was begun (see `Scheduler.finish`)."""
        return self._thread.run(self._finish(key))

    def drain(self) -> None:
        """Begin no further generation, from any thread: `finish` then returns None, soon."""
        self._thread.call(self._scheduler.drain)

    @property
    def coach_stopped(self) -> str | None:
        """Why the coach scores no more (see `Coach.stopped`), or None."""
        return self._coach.stopped

    def watch(self, tasks: Sequence[Task], step: int) -> None:
        """Watch the coach from after `step` on; the training `tasks` are what it is shown."""
        self._thread.run(self._resume(tasks, step))

    def review(self, step: int, episodes: Sequence[Episode]) -> Review:
        """One step's episodes as they are learned from, and what was seen of the coach. Raises CoachError."""
        assert self._reviews is not None, "watch comes first"
        return self._thread.run(self._reviews.review(step, [episode.id for episode in episodes]))

    def measure(self) -> Measured:
        """What happened since the last call."""
        return self._thread.run(self._measure())

    async def _open(self) -> None:
        self._sampler = await self._stack.enter_async_context(self._sampling)
        self._sandbox = await self._stack.enter_async_context(Sandbox.open(self._config.sandbox))
        outside = self._open_outside()
        meter = asyncio.create_task(self._lag.measure())
        self._stack.callback(meter.cancel)
        self._coach = load_coach(self._config.coach, store=JournalStore(self._journal), episodes=read_episodes)
        self._stack.push_async_callback(self._coach.close)
        self._scheduler = Scheduler(self._system, self._services(outside))
        self._stack.push_async_callback(self._scheduler.close)

    def _services(self, outside: Mapping[str, OutsideModel]) -> Services:
        settings = self._config.rollout
        return Services(
            base=self._base,
            sampler=self._sampler,
            coach=self._coach,
            journal=self._journal,
            open_workspace=self._sandbox.workspace,
            timeline=self.timeline,
            published=Published(),
            budget=Budget(settings.tokens_in_flight),
            work=WorkLeft(len(self._system.roles)),
            longest_first=settings.order == "longest-first",
            outside=outside,
            standing=self._standing,
        )

    async def _resume(self, tasks: Sequence[Task], step: int) -> None:
        config, writer, rewriter = self._config, writer_of(self._coach), None
        if config.coach.rewrite_below and writer is not None:
            rewriter = Rewriter(
                writer=writer,
                below=config.coach.rewrite_below,
                output_ids=self._base.output_ids,
                longest=min(config.sampler.max_context, config.learn.tokens_per_micro_batch),
                open_workspace=self._sandbox.workspace,
            )
        self._reviews = Reviews(config, self._coach, self._journal, self._system.roles, tasks, rewriter)
        self._stack.push_async_callback(self._reviews.close)
        await self._reviews.resume(step)

    def _standing(self, step: int, role: str, kind: str) -> Standing | None:
        return self._reviews.standing(step, role, kind) if self._reviews is not None else None

    async def _finish(self, key: str) -> list[Episode] | None:
        return await self._scheduler.finish(key)

    async def _measure(self) -> Measured:
        now, before = replace(self._scheduler.count), self._seen
        self._seen = now
        since = Count(*(getattr(now, name) - getattr(before, name) for name in now.__struct_fields__))
        return Measured(self.timeline.take(), self._lag.take(), since)

    async def _publish(self, version: int, adapters: Mapping[str, Adapter]) -> None:
        published = self._scheduler.services.published
        before, names = published.names(), {}
        with self.timeline.span("publish"):
            for role, adapter in adapters.items():
                names[role] = await self._sampler.publish(role, version, adapter)
                self._journal.add_publish(names[role], role, version)
            published.set(version, names)
            for name in before:
                await self._sampler.retire(name)

    def _open_outside(self) -> dict[str, OutsideModel]:
        """The models that play roles from outside; closed with the team."""
        models = {}
        for name in dict.fromkeys(role.model for role in self._system.roles if role.model):
            if name not in self._config.outside:
                raise ConfigError(f"a role is played by the outside model {name!r}; describe it under [outside.{name}]")
            models[name] = OutsideModel(name, self._config.outside[name])
            self._stack.push_async_callback(models[name].close)
        return models

    def _close(self) -> None:
        self._thread.run(_exit(self._stack))
        self._thread.close()


async def _exit(stack: AsyncExitStack) -> None:
    await stack.aclose()
