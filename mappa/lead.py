"""Rank 0's side of a run: the run's folder, the team at work, and what a person sees of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from mappa.coach import check_roles
from mappa.coach.watch import Review
from mappa.config import Config, available_cores, cache_home
from mappa.errors import CoachError, ConfigError, MappaError
from mappa.evaluate import Mode, evaluate, with_sources
from mappa.interrupt import Interrupts
from mappa.journal import Journal, Span
from mappa.learn import Learner, LearnReport
from mappa.learn.packing import split_by_cost
from mappa.learn.report import peak_memory_gb
from mappa.observe.curves import curves
from mappa.observe.evaluation import EvaluationResult, evaluation_text, paired_text
from mappa.observe.loggers import Loggers
from mappa.observe.metrics import Seconds, append_metrics, read_metrics
from mappa.observe.progress import Progress
from mappa.observe.speed import speed_of, speed_text
from mappa.observe.step import step_metrics
from mappa.observe.summary import Summary, replace_file, write_summary
from mappa.observe.timeline import merge, rollout_metrics, total
from mappa.rollout.samples import samples_of, supervised_of
from mappa.rollout.scheduler import Job
from mappa.rollout.stage import derive_seed
from mappa.rollout.team import Team
from mappa.run import Run, tasks_of_step
from mappa.sampler.choice import check_sampler
from mappa.systems import adapters_of, team_of
from mappa.tasks import prepare
from mappa.types import Episode, Sample, Task
from mappa.view.report import write_report

Phase = str
"""`base`, `trained`, and `step-12` on the way."""


class Lead:
    """Opened before anything large is loaded, so that a run that cannot begin is refused at once."""

    def __init__(self, config: Config, run: Run, stack: ExitStack) -> None:
        self.config = config
        self.run = run
        check_sampler(config)
        self.system = team_of(config)
        check_roles(config.coach, self.system.roles)
        self.roles = list(adapters_of(self.system))
        self.tasks = prepare(config.tasks, cache_home())
        self.results: dict[tuple[Phase, Mode], EvaluationResult] = {}
        self.journal = stack.enter_context(Journal(run.journal, config))
        self._stack = stack
        self._begun = 0  # steps whose episodes were started
        self._episodes: list[Episode] = []
        self._review: Review
        self._rolling = self._scored = self._learning_began = self._learned = self._published = self._step_done = 0.0

    @classmethod
    @contextmanager
    def open(cls, config: Config, *, fresh: bool) -> Iterator[Lead]:
        with ExitStack() as stack:
            run = Run.open(config, fresh=fresh)
            stack.callback(run.close)
            yield cls(config, run, stack)

    def assemble(self, learner: Learner, interrupts: Interrupts) -> None:
        """Start the team around the learner's base, with the learner's adapters published."""
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
                notice=self._note,
            )
        )
        self.loggers = self._stack.enter_context(Loggers(self.run.folder, self.config, learner.steps + 1))
        self.progress = self._stack.enter_context(Progress(self.config.steps, self.roles, done=learner.steps))
        for line in (*self.run.notes, *self.tasks.notes()):
            self.progress.note(line)
        self.team.publish(learner.steps, learner.adapters)
        self.team.watch(self.tasks.train, learner.steps)
        self._begun = learner.steps
        self._step_done = self.team.timeline.now()
        interrupts.on_first(self._drain)

    def evaluate(self, phase: Phase) -> bool:
        """Measure the team on the held-out tasks, once per phase of a run: a resumed run reads what it found before.

        False if the run was asked to stop meanwhile.
        """
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
                if result is None:
                    return False
                replace_file(path, msgspec.json.encode(with_sources(result, self.tasks)))
            self.results[phase, mode] = msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
        self.team.measure()  # a step's numbers begin with the step
        self._step_done = self.team.timeline.now()
        return True

    def roll_out(self, step: int, parts: int) -> Sequence[list[Sample] | None]:
        """The episodes of one step, as samples divided among the ranks; Nones if the run was asked to stop or its coach
        has stopped: then unscored episodes stay unfinished, and are scored when the run goes on.

        Those of later steps are started too, as many as `rollout.max_staleness` lets run ahead. Where `evaluate.every`
        asks for it, the team is measured first.
        """
        settings, every = self.config.rollout, self.config.evaluate.every
        if self.team.coach_stopped is not None:
            return [None] * parts
        if step and every and step % every == 0 and not self.evaluate(f"step-{step}"):
            return [None] * parts
        self._rolling = self.team.timeline.now()
        self.progress.phase("rollouts", settings.episodes)
        while self._begun <= min(step + settings.max_staleness, self.config.steps - 1):
            self._begin(self._begun)
            self._begun += 1
        episodes = self.team.finish(f"train-{step + 1}")
        if episodes is None:
            return [None] * parts
        self._episodes = episodes
        self._scored = self.team.timeline.now()
        review = self._review = self.team.review(step + 1, episodes)
        for alarm in review.news:
            self.progress.note(f"coach: {alarm.text}")
        self.progress.phase("learning")
        self._learning_began = self.team.timeline.now()
        learn = self.config.learn
        samples = samples_of(review.episodes, group_by=learn.group_by, reward=learn.reward, offsets=review.offsets)
        samples += supervised_of(review.rewrites, learn.supervised)
        return split_by_cost(samples, self.roles, parts)

    def check_coach(self) -> None:
        """Raise CoachError if that is why the run has stopped."""
        if (why := self.team.coach_stopped) is not None:
            raise CoachError(f"the coach scores no more, so the run stops here; what it learned is saved. {why}")

    def publish(self, learner: Learner) -> None:
        """The updated adapters, for the next rollouts."""
        self._learned = self.team.timeline.now()
        self.team.timeline.add(Span("learn", "", "", 0, self._learning_began, self._learned))
        self.team.publish(learner.steps, learner.adapters)
        self._published = self.team.timeline.now()

    def step_done(self, report: LearnReport) -> None:
        """Keep and show the step's numbers; on return they, and the step's episodes, are on disk."""
        measured, before = self.team.measure(), self._step_done
        generated = merge(
            (max(span.began, self._rolling), min(span.ended, self._scored))
            for span in measured.spans
            if span.kind == "generate" and span.began < self._scored and span.ended > self._rolling
        )
        now = self.team.timeline.now()
        seconds = Seconds(
            generate=total(generated),
            execute=self._scored - self._rolling - total(generated),
            coach=self._learning_began - self._scored,
            learn=self._learned - self._learning_began,
            publish=self._published - self._learned,
            other=self._rolling - before + now - self._published,  # before: the last step's checkpoint
        )
        rollout = rollout_metrics(
            measured.spans,
            before,
            now,
            self._episodes,
            lag=measured.lag,
            recalled=measured.count.recalled,
            replayed=measured.count.replayed,
            differed=measured.count.differed,
        )
        metrics = step_metrics(self._episodes, report, seconds, measured.count.tokens, rollout, self._review)
        append_metrics(self.run.metrics, metrics)
        for one in report.samples:
            self.journal.add_learned(report.step, one.source, one.advantages, kl=one.kl, entropy=one.entropy)
        self.journal.add_step(report.step, msgspec.json.encode(metrics).decode())
        self.loggers.write(metrics)
        self.journal.flush()
        self.progress.step_done(metrics)
        if not report.tokens_trained:
            self.progress.note(f"step {report.step}: nothing could be learned from, so the adapters are as they were")
        self._step_done = self.team.timeline.now()

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
        self._report()
        self.progress.phase("done")
        self._show(speed_text(speed_of(steps)), picture)

    def _begin(self, step: int) -> None:
        """Start the episodes of a step; those of an interrupted run go on where they were."""
        self.team.begin(
            f"train-{step + 1}",
            jobs_of_step(self.tasks.train, step, self.config),
            phase="train",
            temperature=self.config.sampler.temperature,
            repair=self.config.rollout.repair_upstream,
            oldest=step - self.config.rollout.max_staleness,
            done=self._one_done,
        )

    def _drain(self) -> None:
        self.progress.note("stopping: what is under way is finished and kept; Ctrl-C again stops at once")
        self.team.drain()

    def _show(self, speed: str, picture: Path) -> None:
        for mode in ("greedy", "sampled"):
            if ("base", mode) in self.results:
                before, after = self.results["base", mode], self.results["trained", mode]
                self.progress.note(f"{evaluation_text(before, after)}{paired_text(before, after)}")
        self.progress.note(speed)
        self.progress.note(f"adapters, summary.json and {picture.name} are in {self.run.folder}")

    def _report(self) -> None:
        """The run as one page. It is not what the run was for: a page that cannot be written does not fail it."""
        self.journal.flush()
        try:
            path = write_report(self.run.folder)
        except (MappaError, OSError, sqlite3.Error) as error:
            self.progress.note(f"the report was not written: {error}; mappa report {self.run.folder} tries again")
        else:
            self.progress.note(f"the run as one page: {path}")

    def _note(self, line: str) -> None:
        """Show a line; before there is anything to show it on, when there is."""
        if hasattr(self, "progress"):
            self.progress.note(line)
        else:
            self.run.notes.append(line)

    def _one_done(self, episode: Episode) -> None:
        self.progress.advance()
        if episode.error is not None:
            self.progress.note(f"episode {episode.id} was lost: {episode.error}")


def jobs_of_step(tasks: Sequence[Task], step: int, config: Config) -> list[Job]:
    """The episodes of one step, counted from 0. Depends on its arguments alone, so that a resumed run has the same."""
    settings = config.rollout
    count = -(-settings.episodes // settings.samples_per_task)
    jobs = [
        Job(
            id=f"{step + 1}-{place + 1}-{task.id}-{index}",  # a step may draw a task twice: the place is part
            task=task,
            seed=derive_seed(config.seed, step, place, index),
            step=step + 1,
        )
        for place, task in enumerate(tasks_of_step(tasks, step, count, config.seed))
        for index in range(settings.samples_per_task)
    ]
    return jobs[: settings.episodes]
