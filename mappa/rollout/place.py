"""Where an episode's code runs: a workspace that is opened when it is first needed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from mappa.journal import Observation
from mappa.tasks import populate, repair
from mappa.types import ExecutionResult, Task, Workspace

OpenWorkspace = Callable[[], Awaitable[Workspace]]


class Place:
    """An episode's workspace with the task's files in it.

    A resumed episode owes its new workspace what was done in the one it lost: journaled code is run again, in order,
    and no sooner than something new depends on it. `differed` counts the runs that did not end as they had.
    """

    def __init__(self, task: Task, open_workspace: OpenWorkspace) -> None:
        self.differed = 0
        self.replayed = 0
        self._task = task
        self._open_workspace = open_workspace
        self._workspace: Workspace | None = None
        self._owed: deque[Observation | tuple[str, ...]] = deque()
        self._opening = asyncio.Lock()  # roles may act in parallel

    async def workspace(self) -> Workspace:
        """The workspace, in the state in which the episode left it. Raises SandboxError, TaskError."""
        async with self._opening:
            if self._workspace is None:
                self._workspace = await self._open_workspace()
                populate(self._task, self._workspace)
            while self._owed:
                await self._make_up_for(self._owed.popleft(), self._workspace)
            return self._workspace

    def owe(self, observation: Observation) -> None:
        """What is known of an action already: if the workspace is ever needed, its code has to be run in it first."""
        if observation.code is not None:
            self._owed.append(observation)

    def repair(self, names: tuple[str, ...]) -> None:
        """Put reference artefacts in, at once or after what is owed."""
        if self._workspace is None or self._owed:
            self._owed.append(names)
        else:
            repair(self._task, self._workspace, names)

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()

    async def _make_up_for(self, owed: Observation | tuple[str, ...], workspace: Workspace) -> None:
        if isinstance(owed, tuple):
            repair(self._task, workspace, owed)
        elif owed.code is not None:
            again = await workspace.run(owed.code)
            self.replayed += 1
            self.differed += _told(again) != (None if owed.execution is None else _told(owed.execution))


def _told(result: ExecutionResult) -> tuple[object, ...]:
    """What two runs of the same code should have in common: how they ended and the names of the files they touched."""
    return result.outcome, result.exception, sorted(result.created), sorted(result.changed), sorted(result.deleted)
