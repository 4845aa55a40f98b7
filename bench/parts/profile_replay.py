"""The simulator against a machine that is at hand: a run's steps, predicted with what another run cost.

Loop, server, router and packer are those of the simulated node. What the agents saw and wrote is taken from the run's
own journal, so that nothing but the costs is predicted.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace

from bench.harness import Row, compare
from bench.parts import virtual
from bench.parts.profile_engine import Engine, Gpu
from bench.parts.profile_fit import Fitted, Past, fit
from bench.parts.profile_learner import plan_update
from bench.parts.profile_sampler import NodeSampler
from bench.parts.profile_workload import Drawn
from bench.parts.rollout_simulation import Coach, Workspace, make_services, train
from mappa.journal import Journal
from mappa.observe.metrics import Seconds
from mappa.observe.timeline import merge, total
from mappa.rollout.samples import samples_of
from mappa.rollout.scheduler import Batch, Job, Scheduler
from mappa.rollout.stage import Rules
from mappa.systems import adapters_of, team_of
from mappa.systems.stage import Stage
from mappa.types import Episode, Message, Role, Task

LIMIT = 0.15
"""How far a prediction may be off."""


def calibrated(past: Past) -> Fitted:
    """Costs of a run, decoding scaled so that its own median step is predicted as it was."""
    fitted = fit(past)
    pairs = zip(predict(fitted, past), past.steps, strict=True)
    scale = statistics.median(step.seconds.generate / predicted.generate for predicted, step in pairs)
    return replace(fitted, step=scale * fitted.step, row=scale * fitted.row)


def prediction_rows(fitted: Fitted, past: Past) -> list[Row]:
    """Predicted beside measured: a step's seconds and its shares, medians over steps."""
    predicted, measured = predict(fitted, past), [step.seconds for step in past.steps]
    made = [_row("seconds of a step", [step.total for step in predicted], [step.total for step in measured])]
    for phase in ("generate", "learn"):
        shares = [[getattr(step, phase) / step.total for step in steps] for steps in (predicted, measured)]
        seconds = [[getattr(step, phase) for step in steps] for steps in (predicted, measured)]
        made.append(_row(f"busy share, {phase}", shares[0], shares[1]))
        made.append(_row(f"seconds, {phase}", seconds[0], seconds[1], goal=""))
    return made


def _row(what: str, predicted: Sequence[float], measured: Sequence[float], goal: str = "<= 1") -> Row:
    """`predicted` and `measured` have a value for every step."""
    ours, peer = statistics.median(predicted), statistics.median(measured)
    note = f"predicted {ours:.4g}, measured {peer:.4g}"
    return compare(f"{what}: error of the prediction", abs(ours / peer - 1), LIMIT, "the limit", "", goal, note=note)


def predict(fitted: Fitted, past: Past) -> list[Seconds]:
    """Every step of the run, as the simulator has it."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite", window=0) as journal:
        return virtual.run(_Replay(fitted, past).run(journal), lambda: journal.pending > 0)


class _Replay:
    """A past run's agents: they see, write and run what they did. A system, and the text it is made of."""

    def __init__(self, fitted: Fitted, past: Past) -> None:
        self.fitted, self.past = fitted, past
        self.team = team_of(past.config)
        self.roles = self.team.roles
        self.actions = {f"{episode}/{action.role}/{action.turn}": action for episode, action in past.actions()}
        self.seconds: list[Seconds] = []

    async def run(self, journal: Journal) -> list[Seconds]:
        config, gpu = self.past.config, Gpu()
        engine = Engine(self.fitted, gpu, config.sampler.max_rows * config.sampler.max_context)
        services = make_services(
            journal,
            self,
            NodeSampler([engine], self._draw),
            Coach(lambda context: _any(self.fitted.coach, f"{context.task.id}/{context.action.role}")),
            self._open_workspace,
            tokens=config.rollout.tokens_in_flight,
            roles=len(self.roles),
            longest_first=config.rollout.order == "longest-first",
        )
        self.timeline = services.timeline
        self.began = self.timeline.now()
        async with AsyncExitStack() as stack:
            stack.callback(asyncio.create_task(engine.run()).cancel)
            scheduler = Scheduler(_Agents(self.roles, self.past), services)
            stack.push_async_callback(scheduler.close)
            steps = len(self.past.steps)
            await train(
                scheduler,
                adapters_of(self.team),
                steps=steps,
                staleness=self.past.config.rollout.max_staleness,
                batch=self._batch,
                learn=self._learn,
            )
        return self.seconds

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """The message is the action's name."""
        return self.actions[messages[-1].content].prompt_ids

    def continued_ids(self, context: tuple[int, ...], messages: list[Message]) -> tuple[int, ...]:
        return self.prompt_ids(messages)

    def opening(self, prompt: tuple[int, ...]) -> str:
        return ""

    def text(self, ids: tuple[int, ...]) -> str:
        return ""

    def _draw(self, name: str) -> Drawn:
        action = self.actions[name]
        finished = action.finish_reason != "length"
        return Drawn(ids=action.output_ids, finished=finished, text="", tool=0.0, coach=0.0)

    async def _open_workspace(self) -> Workspace:
        return Workspace(lambda name: _any(self.fitted.tools, name))

    def _batch(self, step: int) -> Batch:
        config, number = self.past.config, self.past.steps[step].step
        rules = Rules(
            temperature=config.sampler.temperature,
            repair=False,
            deadline=float("inf"),
            oldest=step - config.rollout.max_staleness,
        )
        jobs = [
            Job(id=e.id, task=Task(id=e.id, kind=e.kind, prompt=""), seed=e.seed, step=number)
            for e in self.past.episodes
            if e.step == number
        ]
        return Batch(key=str(step), phase="train", jobs=jobs, rules=rules)

    async def _learn(self, step: int, episodes: list[Episode]) -> None:
        """As the lead counts a step's seconds; the real packer says how many tokens there are to learn from."""
        fitted, config, now = self.fitted, self.past.config, self.timeline.now
        scored = now()
        generated = total(merge((s.began, s.ended) for s in self.timeline.take() if s.kind == "generate"))
        samples = samples_of(episodes, group_by=config.learn.group_by)
        update = plan_update(samples, adapters_of(self.team), 1, config.learn.tokens_per_micro_batch, "shared")
        learn = fitted.learn * update.tokens
        await asyncio.sleep(learn + fitted.publish + fitted.other)
        self.seconds.append(
            Seconds(
                generate=generated,
                execute=scored - self.began - generated,
                learn=learn,
                publish=fitted.publish,
                other=fitted.other,
            )
        )
        self.began = now()


def _any(seconds: Sequence[float], name: str) -> float:
    """The same for the same name."""
    return random.Random(name).choice(seconds)


class _Agents:
    """The system of a past run: its actions, in their order. A task is an episode of it."""

    def __init__(self, roles: tuple[Role, ...], past: Past) -> None:
        self.roles = roles
        self._past = {episode.id: episode.actions for episode in past.episodes}

    async def run(self, stage: Stage) -> None:
        roles = {role.name: role for role in self.roles}
        for action in self._past[stage.task.id]:
            name = f"{stage.task.id}/{action.role}/{action.turn}"
            code = name if action.execution is not None else None
            await stage.act(roles[action.role], [Message("user", name)], code=lambda text, code=code: code)  # type: ignore[misc]
