"""What a source holds: tasks, and what it had to refuse."""

from __future__ import annotations

from msgspec import Struct

from mappa.types import Task


class Refused(Struct, frozen=True):
    """A task that cannot be used, and why. `Refused("titanic", "answers/titanic/test_answer.csv is missing")`"""

    task: str
    why: str


class Overlap(Struct, frozen=True):
    """What a held-out task shares with a training task.

    `share` of the held-out task's 13-grams, of its rows, or of its columns; 1 for text that is the same.
    """

    train: str
    heldout: str
    how: str
    share: float


class Found(Struct, frozen=True, kw_only=True):
    """Tasks as a source gives them, before anything is set aside for measuring."""

    train: tuple[Task, ...] = ()
    heldout: tuple[Task, ...] = ()
    refused: tuple[Refused, ...] = ()


class TaskSet(Struct, frozen=True):
    """The tasks to learn from and the tasks to measure on; no id is in both."""

    train: tuple[Task, ...]
    heldout: tuple[Task, ...]
    refused: tuple[Refused, ...] = ()
    overlaps: tuple[Overlap, ...] = ()

    def notes(self, most: int = 5) -> list[str]:
        """What a person should be told: how many tasks were refused or overlap, and the first of them."""
        lines = []
        if self.refused:
            lines.append(f"{len(self.refused)} tasks cannot be used:")
            lines += [f"  {refused.task}: {refused.why}" for refused in self.refused[:most]]
        if self.overlaps:
            lines.append(f"{len(self.overlaps)} held-out tasks overlap with training tasks:")
            lines += [f"  {o.heldout} and {o.train}: {o.how}, {100 * o.share:.0f} %" for o in self.overlaps[:most]]
        return lines
