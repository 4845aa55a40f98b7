"""One execution as the trainer sees it: pipes drained on the event loop, a report, and what came of it all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from mappa.types import ExecutionOutcome

_CHUNK = 1 << 16
_REPORT_LIMIT = 1 << 16


class Report(Struct, frozen=True):
    """What the fork said about the exception that ended it. Comes from a process the model controlled: evidence of
    what its code printed and raised, no more, so nothing but texts rests on it."""

    exception: str | None = None
    line: int | None = None
    kind: Literal["memory", "disk"] | None = None


class Ended(Struct, frozen=True, kw_only=True):
    """What the server said about how an execution ended; this the model's code cannot forge."""

    exit_code: int = 0
    verdict: Literal["timeout", "memory", "disk-limit", "killed"] | None = None
    failure: str | None = None
    """Why the model's code did not run at all."""
    cpu: float = 0.0
    wall: float = 0.0


class Capture:
    """Drains one pipe on the event loop: counts every byte, keeps the first and the last `keep / 2`."""

    def __init__(self, keep: int, on_bytes: Callable[[int], None] | None = None) -> None:
        self.bytes = 0
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._on_bytes = on_bytes
        self._loop = asyncio.get_running_loop()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.drained: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._reader, self._read)

    def hand_over(self) -> int:
        """The write end, for the caller to close."""
        writer, self._writer = self._writer, -1
        return writer

    def close(self) -> None:
        """Stop reading."""
        if self._writer >= 0:
            os.close(self.hand_over())
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
            if not self.drained.done():
                self.drained.set_result(None)

    def data(self) -> bytes:
        """All of it, or the beginning and the end with a line between them that says how much is missing."""
        missing = self.bytes - len(self._head) - len(self._tail)
        gap = b"\n[... %d bytes left out ...]\n" % missing if missing else b""
        return bytes(self._head) + gap + bytes(self._tail)

    def text(self) -> str:
        return self.data().decode("utf-8", "replace")

    def _read(self) -> None:
        try:
            data = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self.bytes += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        del self._tail[: -self._half]
        if self._on_bytes:
            self._on_bytes(self.bytes)


def read_report(capture: Capture) -> Report:
    """The report, empty where there is none or it is damaged."""
    if not 0 < capture.bytes <= _REPORT_LIMIT:
        return Report()
    try:
        return msgspec.json.decode(capture.data(), type=Report)
    except (msgspec.MsgspecError, UnicodeError):
        return Report()


def outcome_of(ended: Ended, report: Report, *, flooded: bool) -> ExecutionOutcome:
    """Why an execution ended, from what the host knows first, then from what the model's process said."""
    if ended.failure is not None:
        return "sandbox-failure"
    if flooded:
        return "output-limit"
    if ended.verdict is not None:
        return ended.verdict
    if ended.exit_code == -signal.SIGXFSZ:
        return "disk-limit"
    if ended.exit_code < 0:
        return "killed"
    if ended.exit_code == 0:
        return "ok"
    if report.kind is not None:
        return {"memory": "memory", "disk": "disk-limit"}[report.kind]  # type: ignore[return-value]
    return "error"
