"""The sandbox: a server that stays alive, workspaces in it, and a bound on what runs at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mappa.config import SandboxConfig, available_cores
from mappa.errors import SandboxError
from mappa.sandbox.folder import Folder
from mappa.sandbox.process import PATIENCE, ServerLost, ServerProcess
from mappa.sandbox.tiers import TierReport, start_server
from mappa.sandbox.workspace import SandboxWorkspace

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Sandbox:
    """Runs model-written code where it can reach nothing.

    async with Sandbox.open(SandboxConfig()) as sandbox:
        workspace = await sandbox.workspace()
        workspace.put("train.csv", data)
        result = await workspace.run("import pandas as pd; print(pd.read_csv('train.csv').shape)", timeout=10)
        workspace.close()

    Everything belongs to the event loop that opened it, and nothing blocks that loop.
    """

    def __init__(self, config: SandboxConfig, patience: float, server: ServerProcess, report: TierReport) -> None:
        self.config = config
        self.report = report
        """How executions are isolated."""
        self.restarts = 0
        """How often the server had to be started anew."""
        self.recycled = 0
        """How often a fresh server took over because the one before had run `recycle_after` executions."""
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "sandbox")
        self.slots = asyncio.Semaphore(config.parallel or available_cores())
        self._server = server
        self._starting = asyncio.Lock()
        self._workspaces: set[SandboxWorkspace] = set()
        self._retired: set[ServerProcess] = set()
        self._recycle_at = config.recycle_after
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: SandboxConfig | None = None, *, patience: float = PATIENCE) -> AsyncIterator[Sandbox]:
        """Start the server; on leaving, stop it and everything in it.

        Isolates as well as this machine can (`report` says how). Raises SandboxError, with what is missing and how to
        get it, where that is not at all; `config.unsafe` runs without isolation, and warns. A server that has not
        answered `patience` seconds after it should have is replaced.
        """
        config = config or SandboxConfig()
        sandbox = cls(config, patience, *await start_server(config, patience))
        try:
            yield sandbox
        finally:
            await sandbox._close()

    async def workspace(self) -> SandboxWorkspace:
        """A new, empty workspace. Raises SandboxError."""
        try:
            made = await self.make_folder()
        except ServerLost:  # just now; there will be another
            made = await self._make_folder_again()
        workspace = SandboxWorkspace(self, *made)
        self._workspaces.add(workspace)
        return workspace

    async def make_folder(self) -> tuple[ServerProcess, int, Folder]:
        """An empty folder on a server that is alive, started anew if need be."""
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            if self._server.lost:
                self._retired.add(self._server)  # until the files of its workspaces have been carried over
                self._server, self.report = await start_server(self.config, self._patience)
                self.restarts += 1
                self._recycle_at = self.config.recycle_after
            server = self._server
        if self.config.recycle_after and server.executions >= self._recycle_at:
            self._recycle_at = server.executions + self.config.recycle_after
            self._own(self._recycle(server))
        number, descriptor = await server.open_workspace()
        return server, number, Folder(descriptor)

    async def _recycle(self, worn: ServerProcess) -> None:
        """Let a fresh server take over. Workspaces stay where they are; with its last one the old server ends."""
        try:
            fresh, _ = await start_server(self.config, self._patience)
        except SandboxError as error:
            _log.warning("no fresh server for the sandbox, the old one goes on: %s", error)
            return
        if self._closed or self._server is not worn:  # it was lost meanwhile, and replaced
            await fresh.stop()
            return
        self._server, self._recycle_at = fresh, self.config.recycle_after
        self.recycled += 1
        self._retired.add(worn)
        self.end_retired()

    def end_retired(self) -> None:
        """Stop servers that were replaced and hold no workspace any more."""
        for server in self._retired - {workspace.server for workspace in self._workspaces}:
            self._retired.discard(server)
            self._own(server.stop())

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)  # not only while it runs: a workspace may be closed between two calls
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make_folder_again(self) -> tuple[ServerProcess, int, Folder]:
        try:
            return await self.make_folder()
        except ServerLost as lost:
            raise SandboxError(f"the sandbox's server was lost twice in a row: {lost}") from lost

    async def aside(self, work: Callable[[], T]) -> T:
        """Look at a folder on a thread, one for all: one that model-written code has filled may take a while."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def later(self, work: Callable[[], object]) -> None:
        """After all that `aside` was asked for so far, even if nobody waits for it any more."""
        self._thread.submit(work)

    def forget(self, workspace: SandboxWorkspace) -> None:
        self._workspaces.discard(workspace)
        self.end_retired()

    def note_failure(self, why: str, *, retried: bool) -> None:
        _log.warning("an execution failed in the sandbox itself (%s)%s", why, "; trying it again" if retried else "")

    async def _close(self) -> None:
        self._closed = True
        for workspace in list(self._workspaces):
            workspace.close()
        async with self._starting:
            self.end_retired()
            while self._tasks:
                await asyncio.gather(*self._tasks)
            await self._server.stop()
        await asyncio.to_thread(self._thread.shutdown)
