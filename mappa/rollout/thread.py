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
    """The loop runs from the start until `close`."""

    def __init__(self) -> None:
        relax_collector()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()

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
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
