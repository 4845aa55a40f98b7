"""Every question the page may ask, by its path: the server answers them live, a report carries the answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from mappa.errors import ConfigError, MappaError
from mappa.journal import read_spans
from mappa.observe.timeline import chrome_trace
from mappa.view.actions import list_actions
from mappa.view.bias import bias_board
from mappa.view.catalogue import Catalogue
from mappa.view.curves import Curves
from mappa.view.drift import drifts
from mappa.view.episode import episode_page
from mappa.view.lanes import lanes
from mappa.view.overview import overview, settings
from mappa.view.words import tokens_of

Query = Mapping[str, str]

_DIGITS = 18  # SQLite's integers have 64 bits
_log = logging.getLogger(__name__)


class Pulse(Struct, frozen=True):
    """Whether anything is new. `changes` grows when something is; `left` actions are still being read."""

    changes: int
    left: int


class Refused(Struct, frozen=True):
    """What a question that has no answer gets."""

    error: str


class Answers:
    """Over one run's folder. Any thread may ask; `refresh` is for one at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises JournalError if the folder has no journal of this schema."""
        self.folder = folder
        self.journal = folder / "journal.sqlite"
        self.settings = settings(self.journal)
        self.catalogue = Catalogue(self.journal)
        self._curves = Curves(self.catalogue)
        self._questions: dict[str, Callable[[Query], object]] = {
            "pulse": lambda _: Pulse(self.catalogue.changes, self.catalogue.left),
            "run": lambda _: overview(folder, self.catalogue, self.settings),
            "curves": lambda query: self._curves.since(_number(query, "since")),
            "actions": self._actions,
            "episode": lambda query: episode_page(self.catalogue, query["id"]),
            "tokens": lambda query: tokens_of(
                self.journal, self.settings.model, query["id"], _number(query, "ordinal")
            ),
            "bias": lambda query: bias_board(self.catalogue, _number(query, "last")),
            "drift": lambda _: drifts(self.catalogue),
            "lanes": lambda query: lanes(self.catalogue, _number(query, "step")),
        }

    def close(self) -> None:
        self.catalogue.close()

    def refresh(self) -> bool:
        """Take in what is new and some of what is old. True while there is more to take."""
        more = self.catalogue.refresh()
        self._curves.update()
        return more

    def keep_up(self, stop: threading.Event, every: float) -> None:
        """Refresh until told to stop: at once while there is more to take, then every so many seconds.

        A journal that cannot be read for a moment is tried again; why is logged, once while it stays the same.
        """
        more, said = True, ""
        while not stop.wait(0.001 if more else every):
            try:
                more, said = self.refresh(), ""
            except MappaError as error:
                if str(error) != said:
                    _log.warning("nothing new can be shown for now: %s; trying again", error)
                more, said = False, str(error)

    def ask(self, name: str, query: Query) -> tuple[int, bytes]:
        """An HTTP status and JSON: the answer, or why there is none."""
        question = self._questions.get(name)
        if question is None:
            return 404, msgspec.json.encode(Refused(f"no question {name!r}"))
        try:
            return 200, msgspec.json.encode(question(query))
        except KeyError as error:
            return 404, msgspec.json.encode(Refused(f"the journal has no {error.args[0]!r}"))
        except MappaError as error:
            return 422, msgspec.json.encode(Refused(str(error)))

    def trace(self) -> bytes:
        """The run's timeline for Perfetto."""
        return chrome_trace(read_spans(self.journal))

    def _actions(self, query: Query) -> object:
        return list_actions(
            self.catalogue,
            query.get("order") or "newest",
            phase=query.get("phase") or "train",
            role=query.get("role", ""),
            task=query.get("task", ""),
            kind=query.get("kind", ""),
            adapter=query.get("adapter", ""),
            text=query.get("text", ""),
            offset=_number(query, "offset"),
        )


def _number(query: Query, name: str) -> int:
    text = query.get(name, "0")
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is not a number")
    if len(text) > _DIGITS:
        raise ConfigError(f"{name}={text[:_DIGITS]}... is larger than any number that a journal holds")
    return int(text)
