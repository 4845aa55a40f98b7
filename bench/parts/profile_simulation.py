"""A config's job on a simulated node: the real scheduler, stage, journal, system, router and packer, in virtual time.

Only what takes time is simulated: servers and learner by the node's cost model, tools and coach by draws. Figures
are of the steps between the first, which begin together, and the last ones, which nothing runs ahead of.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from copy import copy
from pathlib import Path

from msgspec import Struct

from bench.parts import virtual
from bench.parts.profile_design import Design, kv_room
from bench.parts.profile_engine import Counted, Engine, Gpu, busy, learn_on
from bench.parts.profile_learner import Learning, Update, plan_update
from bench.parts.profile_node import GpuCost, Node, forward_flops
from bench.parts.profile_result import History, Simulated
from bench.parts.profile_sampler import InlineCoach, NodeSampler
from bench.parts.profile_workload import Text, Workload, name_in
from bench.parts.rollout_simulation import Coach, Workspace, make_services, train
from mappa.config import Config
from mappa.journal import Journal, Span
from mappa.lead import jobs_of_step
from mappa.learn.samples import learnable
from mappa.learn.shape import ModelShape
from mappa.rollout.samples import learned_actions, samples_of, staleness
from mappa.rollout.scheduler import Batch, Scheduler
from mappa.rollout.stage import Rules
from mappa.run import learn_settings
from mappa.systems import System, adapters_of
from mappa.types import Episode, Sample, Task

WARM = 3
"""Steps before those that are measured: the first batches begin all at once."""
PRINTED = "." * 800
"""What an execution prints."""


class Job(Struct, frozen=True, kw_only=True):
    """What is simulated, whatever the design."""

    config: Config
    system: System
    shape: ModelShape
    node: Node
    workload: Workload
    tasks: Sequence[Task]
    steps: int
    """Measured ones: some before them and, where batches run ahead, some behind them are run as well."""
    updates: dict[tuple[object, ...], Update] = {}
    """Packed batches, which many designs have in common."""


def simulate(job: Job, design: Design) -> tuple[Simulated, History]:
    """Raises ConfigError for a design that does not fit its GPUs."""
    room = kv_room(job.config, job.system, job.shape, job.node, design)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite", window=0) as journal:
        return virtual.run(_Run(job, design, room).run(journal), lambda: journal.pending > 0)


class End(Struct, frozen=True, kw_only=True):
    """Where one step ended, seconds of the virtual clock, and what came of it."""

    at: float
    episodes: list[Episode]
    learn: float
    publish: float
    computed: float
    flops: float
    served: list[Counted]
    """Since the start, by server."""


class _Run:
    """One design at work."""

    def __init__(self, job: Job, design: Design, room: int) -> None:
        self.job, self.design = job, design
        self.gpus = tuple(Gpu() for _ in range(design.gpus))
        self.cost = GpuCost(job.node, job.shape, adapters=not design.full)
        self.engines = [Engine(self.cost, self.gpus[gpu], room, roles) for gpu, roles in design.serving]
        self.ends: list[End] = []

    async def run(self, journal: Journal) -> tuple[Simulated, History]:
        job, design = self.job, self.design
        system = InlineCoach(job.system, self._coach_seconds) if design.inline else job.system
        services = make_services(
            journal,
            Text(job.workload),
            NodeSampler(self.engines, job.workload.action),
            Coach(lambda context: 0.0 if design.inline else self._coach_seconds(context.action.output_ids)),
            self._open_workspace,
            tokens=design.tokens_in_flight,
            roles=len(job.system.roles),
            longest_first=job.config.rollout.order == "longest-first",
        )
        self.timeline = services.timeline
        async with AsyncExitStack() as stack:
            serving = [asyncio.create_task(engine.run()) for engine in self.engines]
            for task in serving:
                stack.callback(task.cancel)
            scheduler = Scheduler(system, services)
            stack.push_async_callback(scheduler.close)
            await train(
                scheduler,
                adapters_of(job.system),
                steps=WARM + job.steps + design.staleness,
                staleness=design.staleness,
                batch=self._batch,
                learn=self._learn,
            )
            for gpu in self.gpus:
                gpu.set(serving=False)
        offset = self.timeline.now() - asyncio.get_running_loop().time()
        spans = tuple(
            Span(s.kind, s.episode, s.role, s.turn, s.began - offset, s.ended - offset) for s in self.timeline.take()
        )
        history = History(self.gpus, spans, self.ends[WARM - 1].at, self.ends[-1 - design.staleness].at)
        return self._result(history), history

    def _batch(self, step: int) -> Batch:
        config = self.job.config
        rules = Rules(
            temperature=config.sampler.temperature,
            repair=False,
            deadline=config.rollout.deadline,
            oldest=step - self.design.staleness,
            max_actions=config.rollout.max_actions,
        )
        return Batch(key=str(step), phase="train", jobs=jobs_of_step(self.job.tasks, step, config), rules=rules)

    async def _learn(self, step: int, episodes: list[Episode]) -> None:
        """Learn and publish."""
        samples = samples_of(episodes, group_by=self.job.config.learn.group_by)
        masked = self.job.config.learn.mask_truncated
        samples = [sample for sample in samples if learnable(sample, mask_truncated=masked)]
        clock, updates = (
            asyncio.get_running_loop().time,
            [self._update(step, samples, *who) for who in self.design.learners],
        )
        began = clock()
        with self.timeline.span("learn"):
            await asyncio.gather(*(update.run(self.gpus, self.job.node) for update in updates))
        learned = clock()
        publishing = max(update.learning.publish_seconds(self.job.node) for update in updates)
        with self.timeline.span("publish"):
            await asyncio.sleep(publishing)
        self.ends.append(
            End(
                at=clock(),
                episodes=episodes,
                learn=learned - began,
                publish=publishing,
                computed=sum(update.update.tokens for update in updates),
                flops=sum(update.flops for update in updates),
                served=[copy(engine.count) for engine in self.engines],
            )
        )

    def _update(self, step: int, samples: Sequence[Sample], gpus: tuple[int, ...], roles: tuple[str, ...]) -> _Learner:
        job, design = self.job, self.design
        mine = [sample for sample in samples if not roles or sample.role in roles]
        tokens = sum(len(sample.tokens) for sample in mine)  # cut episodes are not the same under all designs
        key = (step, gpus, roles, design.micro_tokens, design.batching, len(mine), tokens)
        if key not in job.updates:
            names = roles or adapters_of(job.system)
            job.updates[key] = plan_update(mine, names, len(gpus), design.micro_tokens, design.batching)
        return _Learner(
            gpus, Learning.of(learn_settings(job.config), job.shape, len(gpus), full=design.full), job.updates[key]
        )

    def _coach_seconds(self, ids: tuple[int, ...]) -> float:
        return self.job.workload.written(ids).coach

    async def _open_workspace(self) -> Workspace:
        return Workspace(lambda code: self.job.workload.action(name_in(code)).tool, PRINTED)

    def _result(self, history: History) -> Simulated:
        job, node = self.job, self.job.node
        first, ends = self.ends[WARM - 1], self.ends[WARM : WARM + job.steps]
        seconds = history.ended - history.began
        episodes = [episode for end in ends for episode in end.episodes]
        served = _since(first.served, ends[-1].served)
        flops = sum(end.flops for end in ends)
        peak = self.design.gpus * node.flops
        busy_shares = [busy(gpu, history.began, history.ended) for gpu in self.gpus]
        prompts = sum(count.prefilled + count.reused for count in served)
        learning = sum(end.learn for end in ends)
        return Simulated(
            design=self.design.name,
            gpus=self.design.gpus,
            steps=job.steps,
            step_seconds=seconds / job.steps,
            episodes_per_gpu_hour=3600 * len(episodes) / seconds / self.design.gpus,
            serving=tuple(serving for serving, _ in busy_shares),
            learning=tuple(learning for _, learning in busy_shares),
            staleness=dict(sorted(Counter(staleness(e, a) for e in episodes for a in learned_actions(e)).items())),
            waits=_waits(history, job.steps),
            rows=sum(count.decoded for count in served) / sum(count.steps for count in served),
            token_seconds=sum(count.decode_seconds for count in served) / sum(count.steps for count in served),
            alone=self.cost.decode(1, 0),
            kv_full=max(count.full_seconds for count in served) / seconds,
            prefill_per_second=sum(count.prefilled for count in served) / seconds,
            decode_per_second=sum(count.decoded for count in served) / seconds,
            learn_per_second=sum(end.computed for end in ends) / learning,
            reused=sum(count.reused for count in served) / prompts,
            learn_seconds=learning / job.steps,
            publish_seconds=ends[-1].publish,
            computed=sum(end.computed for end in ends) / job.steps,
            mfu=(flops + self._serving_flops(served)) / (peak * seconds),
            learn_mfu=flops / (peak * learning),
            cut=sum(episode.cut for episode in episodes),
        )

    def _serving_flops(self, served: Sequence[Counted]) -> float:
        return sum(forward_flops(self.job.shape, count.work) for count in served)


class _Learner(Struct, frozen=True):
    """One learner's step."""

    gpus: tuple[int, ...]
    learning: Learning
    update: Update

    @property
    def flops(self) -> float:
        return self.learning.flops(self.update.useful, recomputed=False)

    async def run(self, gpus: Sequence[Gpu], node: Node) -> None:
        await learn_on([gpus[gpu] for gpu in self.gpus], self.learning.seconds(self.update, node))


def _since(before: Sequence[Counted], after: Sequence[Counted]) -> list[Counted]:
    return [
        Counted(*(getattr(b, name) - getattr(a, name) for name in Counted.__struct_fields__))
        for a, b in zip(before, after, strict=True)
    ]


def _waits(history: History, steps: int) -> dict[str, float]:
    """Seconds of all episodes together, per step, by kind of span."""
    totals: defaultdict[str, float] = defaultdict(float)
    for span in history.spans:
        if span.episode:
            totals[span.kind] += max(0.0, min(span.ended, history.ended) - max(span.began, history.began))
    return {kind: seconds / steps for kind, seconds in sorted(totals.items())}
