"""An asyncio loop whose clock jumps: where nothing is left to do until a timer, it is that timer's time already."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while callbacks run, and while `busy` says that a thread is at work that will call back."""

    def __init__(self, busy: Callable[[], bool] = lambda: False) -> None:
        self.now = 0.0
        self.busy = busy
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]  # which class it is depends on the system
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or self._loop.busy():
            return super().select(0 if timeout == 0 else None)
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not found:
            self._loop.now += timeout
        return found


def run(work: Coroutine[Any, Any, T], busy: Callable[[], bool] = lambda: False) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(busy)) as runner:
        return runner.run(work)
