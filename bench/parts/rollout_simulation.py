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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mappa.coach import ActionContext
from mappa.rollout.scheduler import Job
from mappa.systems import Stage
from mappa.types import (
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
_RAN = ExecutionResult(outcome="ok", exit_code=0)
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
    """Running the name of an action takes as long as that action's tool does, and leaves nothing."""

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        await asyncio.sleep(latency(code).tool)
        return _RAN

    def files(self) -> Mapping[str, int]:
        return {}

    def read(self, path: str, limit: int = 0) -> bytes:
        raise FileNotFoundError(path)

    def put(self, path: str, data: bytes) -> None: ...

    def close(self) -> None: ...


async def open_workspace() -> Workspace:
    return Workspace()


class Coach:
    name = "simulated@1"
    stopped: str | None = None

    async def score(self, context: ActionContext) -> Verdict:
        return await self.answer(f"{context.task.id}/{context.action.role}/{context.action.turn}")

    async def answer(self, action: str) -> Verdict:
        await asyncio.sleep(latency(action).coach)
        return _SCORED

    async def close(self) -> None:
        pass


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
