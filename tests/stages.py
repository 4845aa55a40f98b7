"""The real rollout loop with a scripted sampler for a model: what a role writes is given, the rest is real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mappa.coach import Coach, load_coach
from mappa.config import CoachConfig, SandboxConfig
from mappa.journal import Journal
from mappa.model.base import Base, load_base
from mappa.rollout.budget import Budget, WorkLeft
from mappa.rollout.published import Published
from mappa.rollout.scheduler import Batch, Job, Scheduler
from mappa.rollout.stage import Rules, Services
from mappa.rollout.timeline import Timeline
from mappa.sampler import adapter_name
from mappa.sampler.outside import OutsideModel
from mappa.sandbox import Sandbox
from mappa.systems import System, adapters_of
from mappa.types import Action, Episode, Generation, SamplingParams, Task

Reply = str | Callable[[str], str]
"""What a role writes next, or how it follows from the text of its prompt."""


class ScriptedSampler:
    """Obeys `mappa.sampler.Sampler`. Every role writes its replies in order, the last one again and again; a reply that
    ends in `CUT` is cut off at the token limit."""

    CUT = "[cut]"

    def __init__(self, base: Base, replies: Mapping[str, Sequence[Reply]]) -> None:
        self.base = base
        self.replies = replies
        self.prompts: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        """(request id, adapter) of every generation."""

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        await asyncio.sleep(0)
        _, role, turn = request_id.rsplit("/", 2)
        prompt = self.base.tokenizer.decode(list(prompt_ids))
        self.prompts.setdefault(role, []).append(prompt)
        self.requests.append((request_id, adapter))
        reply = self.replies[role][min(int(turn), len(self.replies[role]) - 1)]
        text = reply(prompt) if callable(reply) else reply
        cut = text.endswith(self.CUT)
        ids = tuple(self.base.tokenizer(text.removesuffix(self.CUT), add_special_tokens=False)["input_ids"])
        ids = ids if cut else (*ids, min(self.base.end_ids))
        return Generation(output_ids=ids, logprobs=(-0.5,) * len(ids), finish_reason="length" if cut else "stop")

    async def publish(self, role: str, version: int, tensors: Any) -> str:
        return adapter_name(role, version)

    async def retire(self, adapter: str) -> None: ...

    async def abort(self, prefix: str) -> None: ...

    async def health(self) -> None: ...


class Theatre:
    """Plays systems on tasks; `sampler` is the one of the last play."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.base = load_base(str(model), "float32")
        self.folder = folder
        self.sampler: ScriptedSampler

    def play(
        self,
        system: System,
        task: Task,
        replies: Mapping[str, Sequence[Reply]],
        *,
        coach: Coach | None = None,
        deadline: float = 600.0,
        sandbox: SandboxConfig | None = None,
        outside: Mapping[str, OutsideModel] | None = None,
        max_actions: int = 64,
    ) -> Episode:
        """One episode, from an empty workspace to its outcome."""
        self.sampler = ScriptedSampler(self.base, replies)
        rules = Rules(
            temperature=1.0, repair=False, deadline=deadline, score=coach is not None, max_actions=max_actions
        )
        return asyncio.run(
            self._play(system, task, coach, rules, sandbox or SandboxConfig(preload=()), dict(outside or {}))
        )

    async def _play(
        self,
        system: System,
        task: Task,
        coach: Coach | None,
        rules: Rules,
        sandbox: SandboxConfig,
        outside: Mapping[str, OutsideModel],
    ) -> Episode:
        for old in self.folder.glob("journal.sqlite*"):
            old.unlink()
        published = Published()
        published.set(0, {name: adapter_name(name, 0) for name in adapters_of(system)})
        with Journal(self.folder / "journal.sqlite") as journal:
            async with Sandbox.open(sandbox) as opened:
                services = Services(
                    base=self.base,
                    sampler=self.sampler,
                    coach=coach or load_coach(CoachConfig()),
                    journal=journal,
                    open_workspace=opened.workspace,
                    timeline=Timeline(journal),
                    published=published,
                    budget=Budget(1_000_000),
                    work=WorkLeft(4),
                    longest_first=True,
                    outside=outside,
                )
                jobs = [Job(id=f"1-{task.id}", task=task, seed=5, step=1)]
                loop = Scheduler(system, services)
                loop.begin(Batch(key="1", phase="train", jobs=jobs, rules=rules))
                episodes = await loop.finish("1")
                assert episodes is not None
        return episodes[0]


def transcript(episode: Episode) -> list[tuple[str, int, str]]:
    """(role, turn, text) of every action."""
    return [(action.role, action.turn, action.text) for action in episode.actions]


def last(episode: Episode, role: str) -> Action:
    return [action for action in episode.actions if action.role == role][-1]
