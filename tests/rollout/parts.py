"""Parts around a real scheduler, stage, budget and journal: sampler, tools and coach that only take virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.parts import virtual
from bench.parts.rollout_simulation import Text, make_jobs
from mappa.coach import ActionContext
from mappa.errors import CoachError, SamplerError, ServerError
from mappa.journal import Journal
from mappa.rollout.budget import Budget, WorkLeft
from mappa.rollout.published import Published
from mappa.rollout.scheduler import Batch, Scheduler
from mappa.rollout.stage import Rules, Services
from mappa.rollout.timeline import Timeline
from mappa.systems import Stage
from mappa.types import ExecutionResult, Generation, Role, SamplingParams, Verdict

ROLES = tuple(Role(name=name, prompt="", produces=("submission.csv",), max_tokens=100) for name in ("writer", "critic"))


class Duo:
    """Two roles, two turns each."""

    roles = ROLES

    async def run(self, stage: Stage) -> None:
        for turn in range(2):
            for role in self.roles:
                await stage.act(role, [], code=lambda text, role=role, turn=turn: f"{stage.task.id} {role.name} {turn}")  # type: ignore[misc]


class World:
    """Counts what is asked of sampler, tools and coach, and takes as long for it as `seconds` says of the request.

    >>> World(generate=lambda id: 5.0, tool=lambda code: 2.0, coach=lambda episode: 3.0)
    """

    name = "world@1"

    def __init__(
        self,
        generate: Callable[[str], float] = lambda id: 5.0,
        tool: Callable[[str], float] = lambda code: 2.0,
        coach: Callable[[str], float] = lambda episode: 3.0,
    ) -> None:
        self.generated: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.scored: Counter[str] = Counter()
        self.order: list[str] = []
        self.most = 0
        """Requests at the same time."""
        self.broken: set[str] = set()
        self.gone = False
        """No server is left."""
        self.stopped: str | None = None
        self._at_once = 0
        self._seconds = generate, tool, coach

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        self._at_once += 1
        self.most = max(self.most, self._at_once)
        self.order.append(request_id)
        try:
            await asyncio.sleep(self._seconds[0](request_id))
        finally:
            self._at_once -= 1
        if request_id in self.broken:
            raise SamplerError(f"no answer for {request_id}")
        if self.gone:
            raise ServerError("every server is lost for good")
        self.generated[request_id] += 1
        return Generation(
            output_ids=(params.seed % 1000, 1), logprobs=(-(params.seed % 7) / 3, -0.5), finish_reason="stop"
        )

    async def publish(self, role: str, version: int, tensors: Mapping[str, Any]) -> str:
        return f"{role}@{version}"

    async def retire(self, adapter: str) -> None: ...

    async def abort(self, prefix: str) -> None: ...

    async def health(self) -> None: ...

    async def score(self, context: ActionContext) -> Verdict:
        await asyncio.sleep(self._seconds[2](context.task.id))
        if self.stopped is not None:
            raise CoachError(self.stopped)
        self.scored[f"{context.task.id}/{context.role.name}/{context.action.turn}"] += 1
        return Verdict(score=float(context.action.output_ids[0] % 11), reason="", coach=self.name)

    async def open_workspace(self) -> Folder:
        return Folder(self)


class Folder:
    """Remembers which code was run in it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ran: list[str] = []

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        await asyncio.sleep(self._world._seconds[1](code))
        self._world.executed[code] += 1
        self._ran.append(code)
        return ExecutionResult(outcome="ok", exit_code=0, stdout=" | ".join(self._ran))

    def files(self) -> Mapping[str, int]:
        return {}

    def read(self, path: str, limit: int = 0) -> bytes:
        raise FileNotFoundError(path)

    def put(self, path: str, data: bytes) -> None: ...

    def close(self) -> None: ...


def services(world: World, journal: Journal, *, tokens: int = 1_000_000, longest_first: bool = True) -> Services:
    """Version 0 is published."""
    published = Published()
    published.set(0, {role.name: f"{role.name}@0" for role in ROLES})
    return Services(
        base=Text(),
        sampler=world,
        coach=world,
        journal=journal,
        open_workspace=world.open_workspace,
        timeline=Timeline(journal, asyncio.get_running_loop().time),
        published=published,
        budget=Budget(tokens),
        work=WorkLeft(4),
        longest_first=longest_first,
    )


def batch(
    journal: Journal, folder: Path, count: int, *, step: int = 1, deadline: float = 1e6, oldest: int = 0
) -> Batch:
    """`count` episodes of a step, which go on where the journal has them."""
    return Batch(
        key=str(step),
        phase="train",
        jobs=make_jobs(folder, step, count),
        rules=Rules(temperature=1.0, repair=False, deadline=deadline, oldest=oldest),
        recalled=journal.recall("train", step),
    )


def play(folder: Path, story: Callable[[Journal], Coroutine[Any, Any, Any]]) -> Any:
    """Run `story` in virtual time with the journal under `folder`."""
    with Journal(folder / "journal.sqlite", window=0) as journal:
        return virtual.run(story(journal), lambda: journal.pending > 0)


def scheduler(parts: Services) -> Scheduler:
    return Scheduler(Duo(), parts)


def requests(step: int, count: int) -> Sequence[str]:
    """Ids of all generations of a step."""
    return [f"{step}-{index}/{role.name}/{turn}" for index in range(count) for turn in range(2) for role in ROLES]
