"""An asyncio loop on a thread of its own, so that no update can stall it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from mappa.errors import MappaError
from mappa.rollout.deadline import Watchdog

T = TypeVar("T")


def relax_collector() -> None:
    """Let the collector of cycles look less often, and never at what is loaded by now.

    By default it walks over every episode in flight after each few hundred new objects: of 4,096 episodes, that was a
    sixth of the loop's time, in pauses.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


class LoopThread:
    """The loop runs from the start until `close`; a system that keeps it for `patience` seconds is ended."""

    def __init__(self, patience: float = 30.0) -> None:
        relax_collector()
        self.loop = asyncio.new_event_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._turn, name="rollouts", daemon=True)
        self._thread.start()
        self._watchdog = Watchdog(self.loop, self._thread, patience)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it. An interrupt here cancels it and waits until it has cleaned up."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            with contextlib.suppress(CancelledError, TimeoutError, MappaError):  # the interrupt is what is reported
                future.result(timeout=30)
            raise

    def call(self, work: Callable[[], object]) -> None:
        """Have `work` called on the loop; it is not waited for."""
        self.loop.call_soon_threadsafe(work)

    def close(self) -> None:
        self._closing = True
        self._watchdog.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _turn(self) -> None:
        """asyncio lets SystemExit through from any task, whose failure it is all the same: the others go on."""
        while not self._closing:
            with contextlib.suppress(SystemExit):
                self.loop.run_forever()
