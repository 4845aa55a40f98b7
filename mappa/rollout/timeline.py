"""What happened when: spans of queueing, generating, tools and coach, for the step's summary and the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mappa.journal import Journal, Span

Clock = Callable[[], float]


class Timeline:
    """Belongs to one event loop. Times are seconds since 1970, measured with a clock that never jumps."""

    def __init__(self, journal: Journal, clock: Clock = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._offset = time.time() - clock()
        self.open: set[Measuring] = set()
        self._ended: list[Span] = []

    def now(self) -> float:
        return self._clock() + self._offset

    def span(self, kind: str, episode: str = "", role: str = "", turn: int = 0) -> Measuring:
        """Measures the block it is entered for, however that ends; `seconds` then says how long it was."""
        return Measuring(self, kind, episode, role, turn)

    def add(self, span: Span) -> None:
        self._journal.add_span(span)
        self._ended.append(span)

    def take(self) -> list[Span]:
        """What ended since the last call, and of what is under way the part until now."""
        ended, self._ended = self._ended, []
        now = self.now()
        return [*ended, *(span.until(now) for span in self.open)]


class Measuring:
    """A span that is under way. Four are entered for every action: a plain class of few calls."""

    __slots__ = ("_timeline", "_what", "began", "seconds")

    def __init__(self, timeline: Timeline, kind: str, episode: str, role: str, turn: int) -> None:
        self._timeline = timeline
        self._what = (kind, episode, role, turn)
        self.began = self.seconds = 0.0

    def __enter__(self) -> Measuring:
        self._timeline.open.add(self)
        self.began = self._timeline.now()
        return self

    def __exit__(self, *error: object) -> None:
        timeline = self._timeline
        now = timeline.now()
        self.seconds = now - self.began
        timeline.open.discard(self)
        timeline.add(self.until(now))

    def until(self, now: float) -> Span:
        return Span(*self._what, self.began, now)


class LagMeter:
    """How late the event loop is: it asks to be woken every 10 ms and notes by how much that is missed."""

    PERIOD = 0.01

    def __init__(self) -> None:
        self._late: list[float] = []

    async def measure(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.PERIOD
            await asyncio.sleep(self.PERIOD)
            self._late.append(loop.time() - due)

    def take(self) -> float:
        """99th percentile in seconds since the last call; 0 where nothing was measured."""
        late, self._late = sorted(self._late), []
        return late[min(len(late) - 1, int(0.99 * len(late)))] if late else 0.0
