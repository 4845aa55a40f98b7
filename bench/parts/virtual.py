"""An asyncio loop whose clock jumps: where nothing is left to do until a timer, it is that timer's time already."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while callbacks run.

    While `busy` says that a thread is at work that will call back, no more than `patience` seconds pass before it does.
    """

    def __init__(self, busy: Callable[[], bool] = lambda: False, patience: float = 0.0) -> None:
        self.now = 0.0
        self.busy = busy
        self.patience = patience
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._passed = 0.0  # since a thread called back

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self._loop
        held = timeout is None or (loop.busy() and self._passed + timeout > loop.patience)
        found: list[tuple[selectors.SelectorKey, int]] = super().select(None if held and timeout != 0 else 0)
        if found:
            self._passed = 0.0
        elif timeout:
            self._passed += timeout
            loop.now += timeout
        return found


def run(work: Coroutine[Any, Any, T], busy: Callable[[], bool] = lambda: False, patience: float = 0.0) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(busy, patience)) as runner:
        return runner.run(work)
