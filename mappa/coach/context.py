"""What a coach is shown, and what a coach is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from mappa.types import Action, Role, Task, Verdict


class ActionContext(Struct, frozen=True, kw_only=True):
    """One action with everything its score may hang on.

    >>> ActionContext(task=boston, role=modeler, action=action, files={"X_train.pkl": 51_200, "model.pkl": 8_000_000},
    ...               upstream={"data_engineer": True})
    """

    task: Task
    role: Role
    action: Action
    """With its execution and its evidence; whether its inputs were put right is `action.repaired`."""
    files: Mapping[str, int]
    """Files in the workspace after the action, with their sizes in bytes."""
    upstream: Mapping[str, bool]
    """Whether each role that acted before did its part."""


class Coach(Protocol):
    """Scores actions, any number at a time."""

    name: str
    """Name and version, as it stands in every verdict: scores of different coaches are not comparable."""

    async def score(self, context: ActionContext) -> Verdict:
        """A score from 0 to 10, or a missing one with its reason. Raises CoachError if it can never score this role."""
        ...
