"""Feeding a run's journaled episodes to a learner again: nothing is generated, the samples are the same bit for bit.

    mappa replay runs/NAME                          # the same learner: the same adapters
    mappa replay runs/NAME learn.lr=1e-4            # another one, from the same episodes
    mappa replay runs/NAME --coach rubric           # every action scored again first

Adapters go to OUT/adapters, metrics to OUT/metrics.jsonl; a journal with the new verdicts to OUT/journal.sqlite.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from msgspec.structs import replace

from mappa.coach import ActionContext, Coach, load_coach
from mappa.coach.probe import Probed
from mappa.coach.watch import Watch, Watched
from mappa.config import Config, available_cores, cache_home, override
from mappa.errors import JournalError
from mappa.journal import Journal, Record, read_config, read_episodes, read_records
from mappa.observe.metrics import Seconds, append_metrics
from mappa.observe.step import step_metrics
from mappa.rollout.purchases import JournalStore
from mappa.rollout.review import contexts_of, read_probed
from mappa.rollout.samples import samples_of, supervised_of
from mappa.rollout.stage import context_of
from mappa.run import learn_settings
from mappa.systems import team_of
from mappa.tasks import prepare
from mappa.types import Episode, Task, Verdict

_AT_ONCE = 64


def replay(
    run: Path, out: Path, overrides: Sequence[str] = (), *, coach: str | None = None, say: Callable[[str], None] = print
) -> None:
    """Learn from every finished step of the run in `run`, writing under `out`. Raises MappaError."""
    path = run / "journal.sqlite"
    config = override(read_config(path), [*overrides, *([f"coach.kind={coach}"] if coach else [])])
    if (out / "adapters").exists() or (out / "journal.sqlite").exists():
        raise JournalError(f"{out} holds a replay already; remove it, or give another --out")
    steps = [list(records) for records in finished_steps(path, config.steps)]
    if not steps:
        raise JournalError(f"{run} has no step whose episodes all ended; there is nothing to replay")
    if coach is not None:
        steps = rescored(steps, config, out / "journal.sqlite", say)
    probed = read_probed(path) if coach is None else {}  # another coach was never asked
    _learn(steps, probed, config, out, say)


def finished_steps(path: Path, steps: int) -> Iterator[list[Record]]:
    """Each step's episodes in the order of its jobs, up to the first step that lacks some."""
    for step in range(1, steps + 1):
        records = list(read_records(path, "train", step=step))
        if not records or any(record.state == "running" for record in records):
            return
        yield records


def rescored(
    steps: Sequence[list[Record]], config: Config, path: Path, say: Callable[[str], None]
) -> list[list[Record]]:
    """The same records with new verdicts, which are kept in a journal of their own."""
    tasks = {task.id: task for task in prepare(config.tasks, cache_home()).train}
    with Journal(path, config) as journal:
        coach = load_coach(config.coach, store=JournalStore(journal), episodes=read_episodes)
        return asyncio.run(_score_all(steps, coach, config, tasks, journal, say))


async def _score_all(
    steps: Sequence[list[Record]],
    coach: Coach,
    config: Config,
    tasks: dict[str, Task],
    journal: Journal,
    say: Callable[[str], None],
) -> list[list[Record]]:
    free = asyncio.Semaphore(_AT_ONCE)
    scored = []
    for records in steps:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(_score(record, coach, config, tasks, journal, free)) for record in records]
        again = [job.result() for job in jobs]
        scored.append(again)
        say(_comparison(records, again))
    await coach.close()
    return scored


async def _score(
    record: Record, coach: Coach, config: Config, tasks: dict[str, Task], journal: Journal, free: asyncio.Semaphore
) -> Record:
    """One episode, each of its measured actions scored from what the first coach was shown."""
    roles = {role.name: role for role in team_of(config).roles}
    task = _task(record, tasks)
    actions = {ordinal: entry.action for ordinal, entry in record.entries.items()}
    journal.begin_episode(replace(record.episode, actions=()), "train")
    entries = {}
    for ordinal, entry in record.entries.items():
        action = replace(entry.action, verdict=None)
        journal.add_action(record.episode.id, ordinal, action)
        if entry.observation is not None:
            journal.add_result(record.episode.id, ordinal, entry.observation)
            # What a cut left unscored stays so: a replay learns from the same actions.
            if entry.action.verdict is not None:
                context = context_of(task, roles[action.role], ordinal, actions, entry.observation)
                async with free:
                    verdict = await coach.score(context)
                journal.add_verdict(record.episode.id, ordinal, verdict)
                action = replace(action, verdict=verdict)
        entries[ordinal] = replace(entry, action=action)
    episode = replace(record.episode, actions=tuple(entry.action for entry in entries.values()))
    journal.end_episode(episode)
    return replace(record, episode=episode, entries=entries)


def _comparison(before: Sequence[Record], after: Sequence[Record]) -> str:
    old, new = (_scores([record.episode for record in records]) for records in (before, after))
    step = before[0].episode.step
    return f"step {step}: mean score {_mean(old)} by the run's coach, {_mean(new)} by this one, {len(new)} actions"


def _scores(episodes: Sequence[Episode]) -> list[float]:
    verdicts: list[Verdict] = [a.verdict for e in episodes for a in e.actions if a.verdict is not None]
    return [verdict.score for verdict in verdicts if verdict.score is not None]


def _mean(scores: Sequence[float]) -> str:
    return f"{fmean(scores):.2f}" if scores else "-"


def _learn(
    steps: Sequence[list[Record]],
    probed: Mapping[int, Probed],
    config: Config,
    out: Path,
    say: Callable[[str], None],
) -> None:
    import torch

    from mappa.learn import Learner
    from mappa.learn.packing import split_by_cost

    torch.set_num_threads(config.threads or available_cores())
    settings, learn = learn_settings(config), config.learn
    contexts = _contexts(config) if config.coach.retrospect else lambda record: ()  # nothing else looks at them
    learner = Learner(settings, temperature=config.sampler.temperature, total_steps=config.steps, faults=out / "faults")
    watch = Watch(config.coach)
    for step, records in enumerate(steps, start=1):
        watched = [Watched(record.episode, contexts(record)) for record in records]
        review = watch.review(step, watched, probed.get(step, Probed()))
        episodes = [record.episode for record in records]
        samples = samples_of(review.episodes, group_by=learn.group_by, reward=learn.reward, offsets=review.offsets)
        samples += supervised_of(review.rewrites, learn.supervised)
        report = learner.step_if_any(split_by_cost(samples, settings.roles, 1)[0])
        metrics = step_metrics(episodes, report, Seconds(learn=report.seconds.get("step", 0.0)), 0, None, review)
        append_metrics(out / "metrics.jsonl", metrics)
        say(f"step {metrics.step}/{len(steps)}: {len(episodes)} episodes, {metrics.tokens_trained} action tokens")
    for role in settings.roles:
        learner.export(role, out / "adapters" / role)
    say(f"adapters are in {out / 'adapters'}")


def _contexts(config: Config) -> Callable[[Record], tuple[ActionContext, ...]]:
    """What a coach is shown of a record's actions. It raises JournalError for a task that is there no more."""
    roles = {role.name: role for role in team_of(config).roles}
    tasks = {task.id: task for task in prepare(config.tasks, cache_home()).train}
    return lambda record: contexts_of(record, _task(record, tasks), roles)


def _task(record: Record, tasks: Mapping[str, Task]) -> Task:
    if record.episode.task not in tasks:
        raise JournalError(f"episode {record.episode.id}: there is no task {record.episode.task} any more")
    return tasks[record.episode.task]
