"""Multi-agent systems. A system names its roles and is one async function over a *stage*, which is an episode as the
system sees it: roles act on it, their code is run, and every action is scored and kept without the system's doing.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from mappa.errors import TeamError
from mappa.types import Action, Message, Role, Task

CodeOf = Callable[[str], str | None]
"""Finds the code to run in what a role wrote; None if there is none."""


class Stage(Protocol):
    """One episode of one task."""

    @property
    def task(self) -> Task: ...

    async def act(self, role: Role, messages: Sequence[Message], *, code: CodeOf | None = None) -> Action:
        """Let `role` write once in the context of `messages`, run its code in the episode's workspace, measure what it
        left there, and send it to the coach, who is not waited for."""
        ...

    async def repair(self, role: Role) -> bool:
        """Put reference artefacts in the place of what `role` failed to produce, where the run allows it (training
        only). What follows is marked as repaired. False: nothing was put right."""
        ...


class System(Protocol):
    """A team: its roles in order, and how they work on a task."""

    roles: tuple[Role, ...]

    async def run(self, stage: Stage) -> None: ...


def load_system(name: str) -> System:
    """Import the system at 'module:name'. Raises TeamError with what is wrong with it."""
    module_name, separator, attribute = name.partition(":")
    if not separator:
        raise TeamError(f"system {name!r} is not of the form 'module:name'")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise TeamError(f"system {name!r} cannot be imported: {error}") from error
    except AttributeError:
        raise TeamError(f"system {name!r}: module {module_name} has no {attribute!r}") from None
    system: System = found() if isinstance(found, type) else found
    names = [role.name for role in system.roles]
    if not names:
        raise TeamError(f"system {name!r} has no roles; a team needs at least one")
    for role in names:
        if names.count(role) > 1:
            raise TeamError(f"system {name!r} names the role {role!r} twice; every role needs a name of its own")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", role):
            raise TeamError(
                f"role name {role!r} may hold letters, digits, '_' and '-' only: it names files and adapters"
            )
    return system


def chat(role: Role, request: str) -> list[Message]:
    """A role's prompt, its worked examples as past turns, then what it is asked now."""
    messages = [Message("system", role.prompt)]
    for asked, answered in role.examples:
        messages += [Message("user", asked), Message("assistant", answered)]
    return [*messages, Message("user", request)]


def python_block(text: str) -> str | None:
    """The code of the first fenced block, closed or not; None if there is no fence or nothing in it."""
    found = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.S)
    return found.group(1) if found and found.group(1).strip() else None
