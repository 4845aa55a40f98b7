"""A team whose generation, tools and coach take simulated time: the parts around the real rollout loop.

Every latency is drawn from the episode, role and turn it belongs to, so that two designs meet the very same workload.

    generation  output tokens log-normal, median 300, sigma 0.8, at most 2,048, at 40 tokens/s for each request; the
                server decodes `slots` requests at once, whoever comes later waits
    tool        log-uniform, 2 to 30 s
    coach       log-uniform, 1 to 20 s; 1 in 100 takes 60 s
    learner     60 s a step
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mappa.coach import ActionContext
from mappa.journal import Journal
from mappa.rollout.budget import Budget, WorkLeft
from mappa.rollout.place import OpenWorkspace
from mappa.rollout.published import Published
from mappa.rollout.scheduler import Batch, Job, Scheduler
from mappa.rollout.stage import Services
from mappa.rollout.stage import Text as StageText
from mappa.rollout.timeline import Timeline
from mappa.sampler import Sampler
from mappa.systems import Stage
from mappa.types import (
    Episode,
    ExecutionResult,
    Generation,
    Message,
    Role,
    SamplingParams,
    Task,
    Verdict,
)

if TYPE_CHECKING:
    import torch

ROLES, TURNS = 3, 4
TOKENS_PER_SECOND = 40.0
LEARN_SECONDS = 60.0
PROMPT_TOKENS, LONGEST = 1024, 2048
_PROMPT = tuple(range(PROMPT_TOKENS))
_OUTPUT = tuple(range(LONGEST))
_LOGPROBS = (-0.5,) * LONGEST
_SCORED = Verdict(score=5.0, reason="", coach="simulated@1")


class Latency:
    """Seconds of one action."""

    def __init__(self, action: str) -> None:
        draw = random.Random(action)
        self.tokens = min(LONGEST, max(8, round(300 * math.exp(draw.gauss(0, 0.8)))))
        self.generate = self.tokens / TOKENS_PER_SECOND
        self.tool = 2 * 15 ** draw.random()
        self.coach = 60.0 if draw.random() < 0.01 else 20 ** draw.random()


@functools.cache
def latency(action: str) -> Latency:
    """`latency("3-17/solver/2")`: of step 3's episode 17."""
    return Latency(action)


class Team:
    """Three roles that take turns, four times. None leaves the file it should, so that measuring costs nothing."""

    roles = tuple(
        Role(name=name, prompt="", produces=("submission.csv",), max_tokens=LONGEST)
        for name in ("solver", "coder", "verifier")
    )

    async def run(self, stage: Stage) -> None:
        for turn in range(TURNS):
            for role in self.roles:
                action = f"{stage.task.id}/{role.name}/{turn}"
                await stage.act(role, [], code=lambda text, action=action: action)  # type: ignore[misc]


class Text:
    """Instead of a tokenizer."""

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        return _PROMPT

    def continued_ids(self, context: tuple[int, ...], messages: list[Message]) -> tuple[int, ...]:
        return context + _PROMPT

    def opening(self, prompt: tuple[int, ...]) -> str:
        return ""

    def text(self, ids: tuple[int, ...]) -> str:
        return "pass"


class Server:
    """A sampler with `slots` places. `seconds` is the time it has given to requests, over all places."""

    def __init__(self, slots: int) -> None:
        self.seconds = 0.0
        self._places = asyncio.Semaphore(slots)

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        drawn = latency(request_id)
        async with self._places:
            await asyncio.sleep(drawn.generate)
        self.seconds += drawn.generate
        return Generation(output_ids=_OUTPUT[: drawn.tokens], logprobs=_LOGPROBS[: drawn.tokens], finish_reason="stop")

    async def publish(self, role: str, version: int, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
        return f"{role}@{version}"

    async def retire(self, adapter: str) -> None: ...

    async def abort(self, prefix: str) -> None: ...

    async def health(self) -> None: ...


class Workspace:
    """Running code takes as long as `seconds` says of it, prints what is given, and leaves nothing."""

    def __init__(self, seconds: Callable[[str], float], printed: str = "") -> None:
        self._seconds = seconds
        self._ran = ExecutionResult(outcome="ok", exit_code=0, stdout=printed)

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        await asyncio.sleep(self._seconds(code))
        return self._ran

    def files(self) -> Mapping[str, int]:
        return {}

    def read(self, path: str, limit: int = 0) -> bytes:
        raise FileNotFoundError(path)

    def put(self, path: str, data: bytes) -> None: ...

    def close(self) -> None: ...


async def open_workspace() -> Workspace:
    """Of the team above, whose code is the name of its action."""
    return Workspace(lambda code: latency(code).tool)


class Coach:
    """Scores after as many seconds as `seconds` says of the action."""

    name = "simulated@1"
    stopped: str | None = None

    def __init__(self, seconds: Callable[[ActionContext], float]) -> None:
        self._seconds = seconds

    async def score(self, context: ActionContext) -> Verdict:
        await asyncio.sleep(self._seconds(context))
        return _SCORED

    async def close(self) -> None:
        pass


def coach() -> Coach:
    """Of the team above."""
    return Coach(lambda context: latency(f"{context.task.id}/{context.action.role}/{context.action.turn}").coach)


def make_services(
    journal: Journal,
    base: StageText,
    sampler: Sampler,
    coach: Coach,
    workspace: OpenWorkspace,
    *,
    tokens: int,
    roles: int,
    longest_first: bool = True,
) -> Services:
    """Everything that the real loop works with, on the running loop's clock. `tokens` may be in flight."""
    return Services(
        base=base,
        sampler=sampler,
        coach=coach,
        journal=journal,
        open_workspace=workspace,
        timeline=Timeline(journal, asyncio.get_running_loop().time),
        published=Published(),
        budget=Budget(tokens),
        work=WorkLeft(roles),
        longest_first=longest_first,
    )


async def train(
    scheduler: Scheduler,
    roles: Sequence[str],
    *,
    steps: int,
    staleness: int,
    batch: Callable[[int], Batch],
    learn: Callable[[int, list[Episode]], Awaitable[None]],
) -> None:
    """The job's own order of things (train.py): the next steps' episodes run while the learner learns. Steps count from
    0; a batch's key is its step."""
    begun = 0
    for step in range(steps):
        scheduler.services.published.set(step, {role: f"{role}@{step}" for role in roles})
        while begun <= min(step + staleness, steps - 1):
            scheduler.begin(batch(begun))
            begun += 1
        episodes = await scheduler.finish(str(step))
        assert episodes is not None, "nobody asked it to stop"
        await learn(step, episodes)


def make_jobs(folder: Path, step: int, count: int) -> list[Job]:
    """A step's episodes, each with a task of its own name; their tables are empty."""
    public = folder / "public"
    public.mkdir(parents=True, exist_ok=True)
    for name in ("train.csv", "test.csv", "sample_submission.csv"):
        (public / name).write_bytes(b"id\n")
    return [
        Job(id=id, task=Task(id=id, kind="simulated", prompt="", folder=str(folder)), seed=index, step=step)
        for index in range(count)
        for id in (f"{step}-{index}",)
    ]


def actions_of(episode: str) -> list[str]:
    """Names of an episode's actions in order."""
    return [f"{episode}/{role.name}/{turn}" for turn in range(TURNS) for role in Team.roles]
