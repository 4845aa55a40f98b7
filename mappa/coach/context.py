"""What a coach is shown, and what a coach is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from msgspec import Struct, field

from mappa.types import Action, Message, Outcome, Role, Task, Verdict


class Standing(Struct, frozen=True, kw_only=True):
    """How one role's actions on tasks of one kind were scored lately.

    >>> Standing(count=120, mean=6.1, spread=2.0, gaps={"classification": -0.8}, faults={"text columns left": 14})
    """

    count: int
    mean: float
    spread: float
    gaps: Mapping[str, float] = field(default_factory=dict)
    """Points above (below) actions of equal outcome on tasks of another kind."""
    drift: float | None = None
    """Points by which the coach now scores the same frozen actions higher than at first."""
    faults: Mapping[str, int] = field(default_factory=dict)


class ActionContext(Struct, frozen=True, kw_only=True):
    """One action with everything its score may hang on.

    >>> ActionContext(task=boston, role=modeler, action=action, files={"X_train.pkl": 51_200, "model.pkl": 8_000_000},
    ...               upstream={"data_engineer": True}, messages=(...), earlier=(engineers_action,))
    """

    task: Task
    role: Role
    """With its job description, what it needs and what it must produce."""
    action: Action
    """What it wrote, with its execution and its evidence; whether its inputs were put right is `action.repaired`."""
    files: Mapping[str, int]
    """Files in the workspace after the action, with their sizes in bytes."""
    upstream: Mapping[str, bool]
    """Whether each role that acted before did its part."""
    messages: tuple[Message, ...] = ()
    """All that the role saw."""
    earlier: tuple[Action, ...] = ()
    """The episode's actions before this one, in order: who made which file, and what came of it."""
    shapes: Mapping[str, str] = field(default_factory=dict)
    """Shapes of files where known, in words: `{"X_train.pkl": "404 rows, 13 columns"}`."""
    outcome: Outcome | None = None
    """How the episode ended, where that is known: for its last action, or in retrospect."""
    standing: Standing | None = None
    """The coach's own record for this role and kind, where it is to remember."""
    reading: str = ""
    """Empty, or which further reading of the same action this is: each one is asked for anew, never from a cache."""


class Coach(Protocol):
    """Scores actions, any number at a time."""

    name: str
    """Name and version, as it stands in every verdict: scores of different coaches are not comparable."""

    @property
    def stopped(self) -> str | None:
        """Why it will score no more (a spent budget, a refused key), or None. The run checkpoints and stops."""
        ...

    async def score(self, context: ActionContext) -> Verdict:
        """A score from 0 to 10, or a missing one with its reason. Raises CoachError if it can never score this role."""
        ...

    async def close(self) -> None: ...


def makers(actions: Iterable[Action]) -> dict[str, int]:
    """Which of `actions`, by its place, made or last changed each file that is left after them."""
    made: dict[str, int] = {}
    for place, action in enumerate(actions):
        if action.execution is not None:
            made |= dict.fromkeys((*action.execution.created, *action.execution.changed), place)
            for name in action.execution.deleted:
                made.pop(name, None)
    return made
