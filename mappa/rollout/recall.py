"""Which journaled action a resumed episode has come to, where its roles may act in parallel."""

from __future__ import annotations

from collections.abc import Mapping

from mappa.errors import JournalError
from mappa.journal import Entry
from mappa.types import Role


class Recall:
    """Gives every action of an episode its ordinal and turn, and those that the journal has their entry.

    An action is known by its role and its exact prompt: which of two parallel branches comes first is an accident of
    timing. Where nothing has run in parallel, the order must be the journal's too. New actions take the first ordinal
    and the first turn that are free, as they did when the episode began, so that their seeds are the same.
    """

    def __init__(self, episode: str, entries: Mapping[int, Entry]) -> None:
        self.begun = 0
        self._episode = episode
        self._left = dict(entries)
        self._ordinals = set(entries)
        self._turns = {(entry.action.role, entry.action.turn) for entry in entries.values()}
        self._parallel = False

    def next(self, role: Role, prompt: tuple[int, ...], *, parallel: bool) -> tuple[int, int, Entry | None]:
        """Ordinal, turn, and what the journal has of it. `parallel`: another action is under way. Raises JournalError
        where the journal shows that another action came here."""
        place, self.begun = self.begun, self.begun + 1
        self._parallel |= parallel
        same = [o for o, e in self._left.items() if (e.action.role, e.action.prompt_ids) == (role.name, prompt)]
        ordinal = place if place in same else min(same, default=_first_free(self._ordinals))
        if ordinal != place and place in self._left and not self._parallel:
            raise self._changed(self._left[place])
        self._ordinals.add(ordinal)
        entry = self._left.pop(ordinal, None)
        turn = entry.action.turn if entry is not None else self._turn(role.name)
        return ordinal, turn, entry

    def end(self) -> None:
        """The system is done. Raises JournalError if the journal has actions that it did not come to."""
        for entry in self._left.values():
            raise self._changed(entry)

    def _turn(self, role: str) -> int:
        turn = _first_free({turn for name, turn in self._turns if name == role})
        self._turns.add((role, turn))
        return turn

    def _changed(self, entry: Entry) -> JournalError:
        return JournalError(
            f"episode {self._episode} cannot go on: the journal has {entry.action.role}'s action {entry.action.turn}, "
            "but another role now acts in its place, or is asked something else; the system, its prompts or its tasks "
            "were changed. Run with --fresh"
        )


def _first_free(taken: set[int]) -> int:
    return next(number for number in range(len(taken) + 1) if number not in taken)
