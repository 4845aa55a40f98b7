"""What happened when: spans of queueing, generating, tools and coach, for the step's summary and the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mappa.journal import Journal, Span

Clock = Callable[[], float]


class Timeline:
    """Belongs to one event loop. Times are seconds since 1970, measured with a clock that never jumps."""

    def __init__(self, journal: Journal, clock: Clock = time.monotonic) -> None:
        self._journal = journal
        self._clock = clock
        self._offset = time.time() - clock()
        self._open: dict[int, tuple[str, str, str, int, float]] = {}
        self._next = 0
        self._ended: list[Span] = []

    def now(self) -> float:
        return self._clock() + self._offset

    @contextmanager
    def span(self, kind: str, episode: str = "", role: str = "", turn: int = 0) -> Iterator[None]:
        """Measure the block, however it ends."""
        key = self._next = self._next + 1
        self._open[key] = (kind, episode, role, turn, self.now())
        try:
            yield
        finally:
            self.add(Span(*self._open.pop(key), self.now()))

    def add(self, span: Span) -> None:
        self._journal.add_span(span)
        self._ended.append(span)

    def take(self) -> list[Span]:
        """What ended since the last call, and of what is under way the part until now."""
        ended, self._ended = self._ended, []
        now = self.now()
        return [*ended, *(Span(*begun, now) for begun in self._open.values())]


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
