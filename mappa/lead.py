"""Rank 0's side of a run: the run's folder, the team at work, and what a person sees of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from mappa.config import Config, available_cores, cache_home
from mappa.errors import ConfigError
from mappa.evaluate import Mode, evaluate, with_sources
from mappa.journal import Journal
from mappa.learn import Learner, LearnReport
from mappa.learn.packing import split_by_cost
from mappa.learn.report import peak_memory_gb
from mappa.observe.curves import curves
from mappa.observe.evaluation import EvaluationResult, evaluation_text, paired_text
from mappa.observe.metrics import Seconds, append_metrics, read_metrics
from mappa.observe.progress import Progress
from mappa.observe.scalars import Scalars
from mappa.observe.speed import speed_of, speed_text
from mappa.observe.step import step_metrics
from mappa.observe.summary import Summary, replace_file, write_summary
from mappa.rollout.loop import Job
from mappa.rollout.samples import samples_of
from mappa.rollout.stage import derive_seed
from mappa.rollout.team import Spent, Team
from mappa.run import Run, tasks_of_step
from mappa.systems import adapters_of, load_system
from mappa.tasks import prepare
from mappa.types import Episode, Sample

Phase = Literal["base", "trained"]


class Lead:
    """Opened before anything large is loaded, so that a run that cannot begin is refused at once."""

    def __init__(self, config: Config, run: Run, stack: ExitStack) -> None:
        self.config = config
        self.run = run
        self.system = load_system(config.system)
        self.roles = list(adapters_of(self.system))
        self.tasks = prepare(config.tasks, cache_home())
        self.results: dict[tuple[Phase, Mode], EvaluationResult] = {}
        self.journal = stack.enter_context(Journal(run.journal))
        self._stack = stack
        self._episodes: list[Episode] = []
        self._spent = Spent(0.0, 0.0, 0)
        self._saving = 0.0  # seconds between the last step's numbers and the next step: its checkpoint
        self._step_done = self._learning_began = self._learned = self._published = 0.0

    @classmethod
    @contextmanager
    def open(cls, config: Config, *, fresh: bool) -> Iterator[Lead]:
        with ExitStack() as stack:
            run = Run.open(config, fresh=fresh)
            stack.callback(run.close)
            yield cls(config, run, stack)

    def assemble(self, learner: Learner) -> None:
        """Start the team around the learner's base, with the learner's adapters published."""
        self.journal.forget_after(learner.steps)
        threads = self.config.threads or available_cores()
        self.team = self._stack.enter_context(
            Team(
                self.config,
                self.system,
                learner.base,
                learner.router,
                learner.layers,
                self.journal,
                threads=threads,
            )
        )
        self.scalars = self._stack.enter_context(Scalars(self.run.folder / "tensorboard", learner.steps + 1))
        self.progress = self._stack.enter_context(Progress(self.config.steps, self.roles, done=learner.steps))
        for line in (*self.run.notes, *self.tasks.notes()):
            self.progress.note(line)
        self.team.publish(learner.steps, learner.adapters)

    def evaluate(self, phase: Phase) -> None:
        """Measure the team on the held-out tasks, once per phase of a run: a resumed run reads what it found before."""
        settings = self.config.evaluate
        wanted: dict[Mode, bool] = {"greedy": settings.greedy, "sampled": settings.samples > 0}
        modes = [mode for mode, on in wanted.items() if on]
        if not modes:
            raise ConfigError("evaluate.samples=0 and evaluate.greedy=false leave nothing to measure; set one of them")
        for mode in modes:
            path = self.run.folder / f"evaluation-{phase}-{mode}.json"
            if not path.exists():
                count = len(self.tasks.heldout) * (settings.samples if mode == "sampled" else 1)
                self.progress.phase(f"evaluation of the {phase} team, {mode}", count)
                result = evaluate(
                    self.team,
                    self.tasks.heldout,
                    self.system.roles,
                    self.config,
                    phase=phase,
                    mode=mode,
                    done=self._one_done,
                )
                replace_file(path, msgspec.json.encode(with_sources(result, self.tasks)))
            self.results[phase, mode] = msgspec.json.decode(path.read_bytes(), type=EvaluationResult)

    def roll_out(self, step: int, parts: int) -> list[list[Sample]]:
        """The episodes of one step, as samples divided among the ranks."""
        settings = self.config.rollout
        self._saving = time.monotonic() - self._step_done if self._step_done else 0.0
        self.progress.phase("rollouts", settings.episodes)
        tasks = tasks_of_step(
            self.tasks.train, step, -(-settings.episodes // settings.samples_per_task), self.config.seed
        )
        jobs = [
            Job(
                id=f"{step + 1}-{place + 1}-{task.id}-{index}",  # a step may draw a task twice: the place is part
                task=task,
                seed=derive_seed(self.config.seed, step, place, index),
                step=step + 1,
            )
            for place, task in enumerate(tasks)
            for index in range(settings.samples_per_task)
        ][: settings.episodes]
        self._episodes, self._spent = self.team.run(
            jobs,
            phase="train",
            temperature=self.config.sampler.temperature,
            repair=settings.repair_upstream,
            done=self._one_done,
        )
        self.progress.phase("learning")
        self._learning_began = time.monotonic()
        samples = samples_of(self._episodes, group_by=self.config.learn.group_by)
        return split_by_cost(samples, self.roles, parts)

    def publish(self, learner: Learner) -> None:
        """The updated adapters, for the next rollouts."""
        self._learned = time.monotonic()
        self.team.publish(learner.steps, learner.adapters)
        self._published = time.monotonic()

    def step_done(self, report: LearnReport) -> None:
        """Keep and show the step's numbers; on return they, and the step's episodes, are on disk."""
        seconds = Seconds(
            generate=self._spent.generate,
            execute=self._spent.execute,
            learn=self._learned - self._learning_began,
            publish=self._published - self._learned,
            other=self._saving + time.monotonic() - self._published,
        )
        metrics = step_metrics(self._episodes, report, seconds, self._spent.tokens)
        append_metrics(self.run.metrics, metrics)
        self.journal.add_step(report.step, msgspec.json.encode(metrics).decode())
        self.scalars.write(metrics)
        self.journal.flush()
        self.progress.step_done(metrics)
        self._step_done = time.monotonic()

    def finish(self, learner: Learner) -> None:
        """Export the team, write the summary and the curves, and show what came of it."""
        adapters = {}
        for role in self.roles:
            learner.export(role, self.run.adapters / role)
            adapters[role] = str(self.run.adapters / role)
        steps = read_metrics(self.run.metrics)
        main: Mode = "sampled" if self.config.evaluate.samples else "greedy"
        write_summary(
            self.run.folder,
            Summary(
                name=self.config.name,
                seed=self.config.seed,
                base=self.results["base", main],
                trained=self.results["trained", main],
                base_greedy=self.results.get(("base", "greedy")),
                trained_greedy=self.results.get(("trained", "greedy")),
                steps=len(steps),
                episodes=sum(step.episodes for step in steps),
                lost=sum(step.lost for step in steps),
                train_minutes=sum(step.seconds.total for step in steps) / 60,
                adapters=adapters,
                speed=speed_of(steps),
                peak_memory_gb=max([peak_memory_gb(), *(step.peak_memory_gb for step in steps)]),
                unsafe=self.config.sandbox.unsafe,
            ),
        )
        picture = curves(self.run.folder)
        self.progress.phase("done")
        self._show(speed_text(speed_of(steps)), picture)

    def _show(self, speed: str, picture: Path) -> None:
        for mode in ("greedy", "sampled"):
            if ("base", mode) in self.results:
                before, after = self.results["base", mode], self.results["trained", mode]
                self.progress.note(f"{evaluation_text(before, after)}{paired_text(before, after)}")
        self.progress.note(speed)
        self.progress.note(f"adapters, summary.json and {picture.name} are in {self.run.folder}")

    def _one_done(self, episode: Episode) -> None:
        self.progress.advance()
        if episode.error is not None:
            self.progress.note(f"episode {episode.id} was lost: {episode.error}")
