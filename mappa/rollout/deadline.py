"""How long an episode may take, and who is ended for keeping the loop to itself."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
from types import FrameType

from mappa.errors import TeamError
from mappa.rollout.play import play


class Deadline:
    """Ends an episode `seconds` after its first generation began; its system has as long to ask for that one. What it
    waits until it is let generate does not count.

    >>> async with deadline.limit:
    ...     await system.run(stage)
    """

    def __init__(self, seconds: float) -> None:
        self.limit = asyncio.timeout(seconds)
        self.begun = False
        self._seconds = seconds

    def queued(self) -> None:
        """An action waits to be let generate."""
        self._set(None)

    def begin(self) -> None:
        """An action is taken."""
        self._set(asyncio.get_running_loop().time() + self._seconds)
        self.begun = True

    def _set(self, when: float | None) -> None:
        if not self.begun and not self.limit.expired():
            self.limit.reschedule(when)


class StuckError(TeamError):
    """Raised in the middle of a system's function that computes without awaiting."""

    def __init__(self) -> None:
        super().__init__(
            "the system computed too long without awaiting anything, and held up every episode (rollout.patience); "
            "move the work to a thread, or end its loop"
        )


class Watchdog:
    """Raises StuckError in whatever system keeps `thread` from turning `loop` for `patience` seconds.

    What else holds the loop up is let be. A system's code in a task of its own is not recognised, nor can a call that
    never comes back from C be ended.
    """

    LOOKS = 10

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread, patience: float) -> None:
        self._loop = loop
        self._watched = thread
        self._period = patience / self.LOOKS
        self._turned = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before the loop is closed."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0  # looks, not seconds: a process that was stopped for an hour has missed one
        self._turned.set()
        while not self._over.wait(self._period):
            if self._turned.is_set():
                missed = 0
                self._turned.clear()
                self._loop.call_soon_threadsafe(self._turned.set)
            else:
                missed += 1
                if missed >= self.LOOKS and self._in_a_system():
                    self._interrupt()
                    missed = 0

    def _in_a_system(self) -> bool:
        frame: FrameType | None = sys._current_frames().get(self._watched.ident or 0)
        while frame is not None and frame.f_code is not play.__code__:
            frame = frame.f_back
        return frame is not None

    def _interrupt(self) -> None:
        set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
        set_error(ctypes.c_ulong(self._watched.ident or 0), ctypes.py_object(StuckError))
        if self._turned.is_set():  # it came back by itself meanwhile
            set_error(ctypes.c_ulong(self._watched.ident or 0), None)
