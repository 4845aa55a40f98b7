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
        refused = [f"{one.task}: {one.why}" for one in self.refused]
        lines = _list(f"{len(refused)} tasks cannot be used:", refused, most)
        return lines + _list(
            f"{len(self.overlaps)} held-out tasks overlap with training tasks:", self.shared_in_words(), most
        )

    def shared_in_words(self) -> list[str]:
        """`b-2 and a-3: 13-gram, 54 %` of every overlap."""
        return [f"{o.heldout} and {o.train}: {o.how}, {100 * o.share:.0f} %" for o in self.overlaps]


def _list(heading: str, lines: list[str], most: int) -> list[str]:
    return [heading, *(f"  {line}" for line in lines[:most])] if lines else []
