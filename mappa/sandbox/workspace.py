"""A workspace: an episode's private folder inside the sandbox, and the executions that run in it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from mappa.errors import SandboxError
from mappa.sandbox.execution import Capture, outcome_of, read_report
from mappa.sandbox.folder import Folder, Stamp
from mappa.sandbox.process import Run, ServerLost, ServerProcess
from mappa.types import ExecutionResult

if TYPE_CHECKING:
    from mappa.sandbox.sandbox import Sandbox

READ_LIMIT = 64 << 20
"""Bytes that `read` returns at most unless told otherwise."""

_ATTEMPTS = 2
_LONGEST_SECONDS = 7 * 24 * 3600
_DRAIN_SECONDS = 1.0
_REPORT_KEPT = 1 << 17


class SandboxWorkspace:
    """Made by `Sandbox.workspace`. Executions in one workspace run one after the other.

    `files`, `read` and `put` raise OSError: FileNotFoundError for what is not there, any other for what the host must
    not touch (links, pipes, paths that lead out) or will not (more than `limit` bytes, a full workspace).
    """

    def __init__(self, sandbox: Sandbox, server: ServerProcess, number: int, folder: Folder) -> None:
        self._sandbox = sandbox
        self.server = server
        """The one that holds its folder."""
        self._number = number
        self._folder = folder
        self._files: dict[str, Stamp] = {}
        self._turn = asyncio.Lock()
        self._closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        """Execute `code` as a Python program whose current folder is this workspace. Never raises for what it does.

        `timeout` counts from its start, not while it waits for a free slot. Where the server was lost under it, it is
        tried once more; the second time its outcome is `sandbox-failure`. SandboxError: no server can be started, or
        `timeout` is not a number of seconds up to a week.
        """
        limit = self._sandbox.config.timeout if timeout is None else timeout
        if not abs(limit) <= _LONGEST_SECONDS:  # NaN is not either
            raise SandboxError(f"a timeout of {limit} s; give at most {_LONGEST_SECONDS} (a week)")
        async with self._turn, self._sandbox.slots:
            self._check_open()
            return await self._run(code, limit)

    def files(self) -> dict[str, int]:
        """Regular files by path, with their sizes in bytes, as the last execution and `put` left them."""
        self._check_open()
        return {path: stamp.size for path, stamp in self._files.items()}

    def read(self, path: str, limit: int = READ_LIMIT) -> bytes:
        """A regular file's bytes; OSError (EFBIG) if they are more than `limit`."""
        self._check_open()
        return self._folder.read(path, limit)

    def put(self, path: str, data: bytes) -> None:
        """Write a file in place of whatever had its name; folders above it are made."""
        self._check_open()
        shown, stamp = self._folder.put(path, data)
        self._files[shown] = stamp

    def close(self) -> None:
        """Give up the folder and all in it. What still runs there is killed. May be called twice."""
        if not self._closed:
            self._closed = True
            self.server.close_workspace(self._number)
            self._sandbox.forget(self)
            self._sandbox.later(self._folder.close)

    async def _run(self, code: str, timeout: float) -> ExecutionResult:
        for attempt in range(_ATTEMPTS):
            try:
                if self.server.lost:
                    await self._move()
                result = await self._attempt(code, timeout)
            except ServerLost as lost:
                result = ExecutionResult(outcome="sandbox-failure", stderr=str(lost))
            if result.outcome != "sandbox-failure" or self._closed:
                break
            self._sandbox.note_failure(result.stderr, retried=attempt + 1 < _ATTEMPTS)
        return result

    async def _attempt(self, code: str, timeout: float) -> ExecutionResult:
        config = self._sandbox.config
        flooded = False

        def count(_: int) -> None:
            nonlocal flooded
            if not flooded and sum(made.bytes for made in run.captures) > config.output_limit_mb << 20:
                flooded = True
                self.server.kill(run)

        with contextlib.ExitStack() as captures:

            def capture(keep: int) -> Capture:
                made = Capture(keep, count)
                captures.callback(made.close)
                return made

            stdout, stderr, report = (
                capture(keep) for keep in (config.output_kb << 10, config.output_kb << 10, _REPORT_KEPT)
            )
            run = Run(code.encode("utf-8", "surrogatepass"), stdout, stderr, report)
            ended = await self.server.execute(run, self._number, timeout)
            await asyncio.wait([made.drained for made in run.captures], timeout=_DRAIN_SECONDS)
        before = self._files
        if not self._closed:
            self._files = await self._sandbox.aside(self._folder.snapshot)
        told = read_report(report)
        return ExecutionResult(
            outcome=outcome_of(ended, told, flooded=flooded),
            exit_code=None if ended.failure else ended.exit_code,
            stdout=stdout.text(),
            stderr=ended.failure or stderr.text(),
            stdout_bytes=stdout.bytes,
            stderr_bytes=stderr.bytes,
            exception=told.exception,
            exception_line=told.line,
            created={path: stamp.size for path, stamp in self._files.items() if path not in before},
            changed=_changed(before, self._files),
            deleted=tuple(path for path in before if path not in self._files),
            cpu_seconds=ended.cpu,
            wall_seconds=ended.wall,
        )

    async def _move(self) -> None:
        """To a new server, with what the host can read of the files; links and pipes stay behind."""
        server, number, folder = await self._sandbox.make_folder()
        try:
            self._files = await self._sandbox.aside(lambda: _copy(self._folder, folder))
        except BaseException:
            server.close_workspace(number)
            self._sandbox.later(folder.close)
            raise
        self._sandbox.later(self._folder.close)
        self.server, self._number, self._folder = server, number, folder
        self._sandbox.end_retired()

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxError("this workspace is closed")


def _changed(before: dict[str, Stamp], after: dict[str, Stamp]) -> dict[str, int]:
    return {path: stamp.size for path, stamp in after.items() if path in before and before[path] != stamp}


def _copy(source: Folder, target: Folder) -> dict[str, Stamp]:
    copied = {}
    for path in source.snapshot():
        with contextlib.suppress(OSError):
            shown, stamp = target.put(path, source.read(path, READ_LIMIT))
            copied[shown] = stamp
    return copied
