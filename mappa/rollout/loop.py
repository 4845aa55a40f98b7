"""The rollout loop: episodes in flight on an asyncio loop that has a thread of its own.

Generation, sandbox runs and coach calls of different episodes overlap freely; within an episode the coach scores one
action while the next is generated. An episode that fails is counted with its reason and never trained on; one that
passes its deadline is cut, likewise counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from mappa.errors import MappaError
from mappa.rollout.play import play
from mappa.rollout.stage import EpisodeStage, Services
from mappa.systems import System
from mappa.tasks import outcome, populate
from mappa.types import Episode, Task

T = TypeVar("T")
Done = Callable[[Episode], None]


class Job(Struct, frozen=True, kw_only=True):
    """An episode to run."""

    id: str
    task: Task
    seed: int
    step: int


class LoopThread:
    """An asyncio event loop on a thread of its own, so that no update can stall it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it. An interrupt here cancels it and waits until it has cleaned up."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            with contextlib.suppress(CancelledError, TimeoutError, MappaError):  # the interrupt is what is reported
                future.result(timeout=30)
            raise

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def run_episodes(
    jobs: Sequence[Job], system: System, services: Services, *, phase: str, deadline: float, done: Done
) -> list[Episode]:
    """Run every job to its end, in any order, and return the episodes in the order of the jobs.

    `done` is called with each as it ends. What went wrong in one episode stays in its `error`; errors that would meet
    every episode (a full disk under the journal) end the run.
    """
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(_episode(job, system, services, phase=phase, deadline=deadline, done=done))
            for job in jobs
        ]
    return [task.result() for task in running]


async def _episode(job: Job, system: System, services: Services, *, phase: str, deadline: float, done: Done) -> Episode:
    episode = Episode(id=job.id, task=job.task.id, kind=job.task.kind, seed=job.seed, step=job.step)
    services.journal.begin_episode(episode, phase)
    started = time.monotonic()
    workspace = await services.open_workspace()
    try:
        populate(job.task, workspace)
        stage = EpisodeStage(episode, job.task, workspace, services)
        try:
            async with asyncio.timeout(deadline):
                await play(system, stage)
                await stage.verdicts()
        except TimeoutError:
            seconds = time.monotonic() - started
            episode = replace(episode, error=f"deadline: not done after {seconds:.0f} s (rollout.deadline)")
        except MappaError as error:
            episode = replace(episode, error=f"{type(error).__name__}: {error}")
        finally:
            stage.cancel()
        episode = replace(episode, actions=tuple(stage.actions))
        if episode.error is None:
            episode = replace(episode, outcome=outcome(job.task, episode.actions))
    finally:
        workspace.close()
    services.journal.end_episode(episode)
    done(episode)
    return episode
