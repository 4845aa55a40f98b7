"""Ctrl-C: the first asks a run to come to a good end, the second stops it where it is. Both can be continued."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered, the first SIGINT calls what was given to `on_first`; the second is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._on_first: Callable[[], None] | None = None
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def on_first(self, work: Callable[[], None]) -> None:
        """Have `work` called at the first interrupt, at once if that has come already."""
        self._on_first = work
        if self.asked:
            work()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._on_first is not None:
            self._on_first()
