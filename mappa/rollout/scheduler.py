"""The rollout loop: batches of episodes in flight on one event loop, overlapping each other and the learner.

Generation, sandbox runs and coach calls of different episodes overlap freely; within an episode the coach scores one
action while the next is generated. How much is generated at once is bounded in tokens; batches of later steps run ahead
of the learner as far as `oldest`, the version their actions must have at least, allows.

Every episode ends in one of four ways: done; cut at its deadline, and then what it finished and scored is learned from;
lost with an error; or unfinished, because the run stops, and then it goes on from the journal when the run does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from mappa.errors import JournalError, MappaError, ServerError
from mappa.journal import Record
from mappa.rollout.budget import Draining
from mappa.rollout.deadline import Deadline
from mappa.rollout.play import play
from mappa.rollout.stage import EpisodeStage, Rules, Services
from mappa.systems import System
from mappa.tasks import outcome
from mappa.types import Episode, Task

Done = Callable[[Episode], None]


class Job(Struct, frozen=True, kw_only=True):
    """An episode to run."""

    id: str
    task: Task
    seed: int
    step: int


class Batch(Struct, frozen=True, kw_only=True):
    """Episodes that are waited for together. `key` names them, `recalled` is what the journal has of them already."""

    key: str
    phase: str
    jobs: Sequence[Job]
    rules: Rules
    recalled: Mapping[str, Record] = field(default_factory=dict)
    done: Done = lambda episode: None


class Count(Struct):
    """What happened since the start, for the step's numbers."""

    tokens: int = 0
    """Sampled by this process."""
    recalled: int = 0
    """Actions taken from the journal."""
    replayed: int = 0
    """Runs of journaled code in a new workspace."""
    differed: int = 0
    """Of those, the ones that did not end as they had."""


class Scheduler:
    """Runs batches of episodes. Belongs to one event loop.

    >>> scheduler.begin(batch)
    >>> episodes = await scheduler.finish(batch.key)
    """

    def __init__(self, system: System, services: Services) -> None:
        self.services = services
        self.count = Count()
        self._system = system
        self._produces = {role.name: role.produces for role in system.roles}
        self._running: dict[str, asyncio.Task[list[Episode | None]]] = {}

    def begin(self, batch: Batch) -> None:
        """Start a batch's episodes; they run whether or not anybody waits."""
        self._running[batch.key] = asyncio.create_task(self._run(batch))

    async def finish(self, key: str) -> list[Episode] | None:
        """The episodes of a batch in the order of its jobs, all on disk; None if it was drained before its end.

        What went wrong in one episode stays in its `error`; errors that would meet every episode (a full disk under the
        journal, no server left) are raised, and the episodes stay unfinished.
        """
        episodes = await self._running.pop(key)
        await self.services.journal.written()
        finished = [episode for episode in episodes if episode is not None]
        return finished if len(finished) == len(episodes) else None

    def drain(self) -> None:
        """Let what is being generated, run and scored come to its end, and begin nothing more."""
        self.services.budget.drain()
        self.services.published.drain()

    async def close(self) -> None:
        """Cancel what still runs; it stays unfinished in the journal."""
        running = list(self._running.values())
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, batch: Batch) -> list[Episode | None]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._episode(job, batch)) for job in batch.jobs]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _episode(self, job: Job, batch: Batch) -> Episode | None:
        known = batch.recalled.get(job.id)
        if known is not None and known.state != "running":
            self.count.recalled += len(known.entries)
            batch.done(known.episode)
            return known.episode
        episode = Episode(id=job.id, task=job.task.id, kind=job.task.kind, seed=job.seed, step=job.step)
        if known is None:
            self.services.journal.begin_episode(episode, batch.phase)
        try:
            ended = await self._act_out(episode, job.task, batch.rules, known)
        except Draining:
            return None
        self.services.journal.end_episode(ended)
        batch.done(ended)
        return ended

    async def _act_out(self, episode: Episode, task: Task, rules: Rules, known: Record | None) -> Episode:
        deadline = Deadline(rules.deadline)
        recalled = {} if known is None else known.entries
        self.count.recalled += len(recalled)
        stage = EpisodeStage(episode, task, self.services, rules, deadline, recalled)
        try:
            async with deadline.limit:
                try:
                    await play(self._system, stage)
                except (Draining, MappaError):
                    await stage.scored()  # what the coach is reading is paid for
                    raise
                await stage.verdicts()
        except TimeoutError:
            if not deadline.limit.expired():
                raise
            if deadline.begun:
                episode = replace(episode, cut=True)
            else:
                why = f"the system took no action within {rules.deadline:g} s (rollout.deadline)"
                episode = replace(episode, error=f"TeamError: {why}")
        except (JournalError, ServerError):
            raise
        except MappaError as error:
            episode = replace(episode, error=f"{type(error).__name__}: {error}")
        finally:
            await stage.close()
            self._add(stage)
        episode = replace(episode, actions=stage.actions)
        if episode.error is None and not episode.cut:
            episode = replace(episode, outcome=outcome(task, episode.actions, self._produces))
        return episode

    def _add(self, stage: EpisodeStage) -> None:
        self.count.tokens += stage.generated
        self.count.replayed += stage.place.replayed
        self.count.differed += stage.place.differed
