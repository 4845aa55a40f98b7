"""A team at work: its sampler, sandbox and coach, opened together on the rollout loop's thread. Rank 0 has one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

from msgspec import Struct

from mappa.coach import Coach, load_coach
from mappa.config import Config
from mappa.errors import ConfigError
from mappa.journal import Journal
from mappa.model.base import Base
from mappa.model.lora import Adapter, RoleLinear, Router
from mappa.rollout.loop import Job, LoopThread, run_episodes
from mappa.rollout.stage import Services
from mappa.sampler.local import LocalSampler
from mappa.sampler.outside import OutsideModel
from mappa.sandbox import Sandbox
from mappa.systems import System
from mappa.types import Episode, Workspace


class Spent(Struct, frozen=True):
    """Where a batch's wall time went: generating, or waiting for tools and coach while nothing generated."""

    generate: float
    execute: float
    tokens: int


class Team:
    """Runs episodes with the adapters that were last published.

    >>> with Team(config, system, base, router, layers, journal) as team:
    ...     team.publish(0, adapters)
    ...     episodes, spent = team.run(jobs, phase="train", temperature=0.6, repair=True)
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
    ) -> None:
        self._config = config
        self._system = system
        self._base = base
        self._journal = journal
        self._published: dict[str, str] = {}
        self._coach: Coach = load_coach(config.coach)
        settings = config.sampler
        self._sampler = LocalSampler(
            base, router, layers, max_rows=settings.max_rows, max_context=settings.max_context, threads=threads
        )
        self._thread = LoopThread()
        self._stack = AsyncExitStack()
        self._outside: dict[str, OutsideModel] = {}

    def __enter__(self) -> Team:
        try:
            self._sandbox = self._thread.run(self._stack.enter_async_context(Sandbox.open(self._config.sandbox)))
            self._thread.run(self._open_outside())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(_exit(self._stack))
        self._close()

    def publish(self, version: int, adapters: Mapping[str, Adapter]) -> None:
        """Make every role's weights available as `role@version`, route new requests to them, retire the last ones."""
        self._thread.run(self._publish(version, adapters))

    def run(
        self,
        jobs: Sequence[Job],
        *,
        phase: str,
        temperature: float,
        repair: bool,
        score: bool = True,
        done: Callable[[Episode], None] = lambda episode: None,
    ) -> tuple[list[Episode], Spent]:
        """Run the jobs to their end (see `run_episodes`); everything is journaled when this returns. Without `score` no
        coach is asked."""
        services = Services(
            base=self._base,
            sampler=self._sampler,
            coach=self._coach if score else None,
            journal=self._journal,
            open_workspace=self._open_workspace,
            adapters=dict(self._published),
            temperature=temperature,
            repair=repair,
            outside=self._outside,
            max_actions=self._config.rollout.max_actions,
        )
        started, busy, tokens = time.monotonic(), self._sampler.busy_seconds, self._sampler.tokens
        episodes = self._thread.run(
            run_episodes(jobs, self._system, services, phase=phase, deadline=self._config.rollout.deadline, done=done)
        )
        self._journal.flush()
        generate = self._sampler.busy_seconds - busy
        waited = max(0.0, time.monotonic() - started - generate)
        return episodes, Spent(generate=generate, execute=waited, tokens=self._sampler.tokens - tokens)

    async def _publish(self, version: int, adapters: Mapping[str, Adapter]) -> None:
        before = dict(self._published)
        for role, adapter in adapters.items():
            self._published[role] = await self._sampler.publish(role, version, adapter)
            self._journal.add_publish(self._published[role], role, version)
        for name in before.values():
            await self._sampler.retire(name)

    async def _open_outside(self) -> None:
        for name in dict.fromkeys(role.model for role in self._system.roles if role.model):
            if name not in self._config.outside:
                raise ConfigError(f"a role is played by the outside model {name!r}; describe it under [outside.{name}]")
            self._outside[name] = OutsideModel(name, self._config.outside[name])
            self._stack.push_async_callback(self._outside[name].close)

    async def _open_workspace(self) -> Workspace:
        return await self._sandbox.workspace()

    def _close(self) -> None:
        self._sampler.close()
        self._thread.close()


async def _exit(stack: AsyncExitStack) -> None:
    await stack.aclose()
