"""What a system is, and the stage it plays on: one episode of one task, as the system sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from mappa.types import Action, Message, Role, Task

CodeOf = Callable[[str], str | None]
"""Finds the code to run in what a role wrote; None if there is none."""


class Stage(Protocol):
    """One episode of one task. Every action is run, measured, scored and kept without the system's doing."""

    @property
    def task(self) -> Task: ...

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        """Let `role` write once in the context of `messages`, run its code in the episode's workspace, measure what it
        left there, and send it to the coach, who is not waited for.

        `after` goes on from an earlier action of the same role: its context and what it wrote, token for token, and
        then `messages`. Raises TeamError for a role that is not the system's, and once an episode has as many actions
        as `rollout.max_actions` allows.
        """
        ...

    async def repair(self, role: Role) -> bool:
        """Put reference artefacts in the place of what `role` failed to produce, where the run allows it (training
        only). What follows is marked as repaired. False: nothing was put right."""
        ...

    def files(self) -> dict[str, int]:
        """Files in the episode's workspace after its last action, with their sizes in bytes."""
        ...


class ForwardingStage:
    """Implements `Stage` by another one, for stages that do one thing otherwise."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def task(self) -> Task:
        return self._stage.task

    async def act(
        self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None, after: Action | None = None
    ) -> Action:
        return await self._stage.act(role, messages, code=code, after=after)

    async def repair(self, role: Role) -> bool:
        return await self._stage.repair(role)

    def files(self) -> dict[str, int]:
        return self._stage.files()


class System(Protocol):
    """A team: its roles in order, and how they work on a task."""

    @property
    def roles(self) -> tuple[Role, ...]: ...

    async def run(self, stage: Stage) -> None: ...


class FunctionSystem(Struct, frozen=True):
    """A system made of its roles and one async function."""

    roles: tuple[Role, ...]
    run: Callable[[Stage], Awaitable[None]]


def system(*roles: Role) -> Callable[[Callable[[Stage], Awaitable[None]]], FunctionSystem]:
    """Make an async function over a stage a system.

    >>> @system(WRITER, CRITIC)
    ... async def pair(stage: Stage) -> None:
    ...     draft = await stage.act(WRITER, chat(WRITER, stage.task.prompt))
    ...     await stage.act(CRITIC, chat(CRITIC, spoken(draft)))
    """
    return lambda run: FunctionSystem(roles, run)
