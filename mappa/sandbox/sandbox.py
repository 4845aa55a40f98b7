"""The sandbox: a server that stays alive, workspaces in it, and a bound on what runs at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from mappa.config import SandboxConfig, available_cores
from mappa.errors import SandboxError
from mappa.sandbox.folder import Folder
from mappa.sandbox.process import ServerProcess
from mappa.sandbox.tiers import TierReport, start_server
from mappa.sandbox.workspace import SandboxWorkspace

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

    def __init__(self, config: SandboxConfig, server: ServerProcess, report: TierReport) -> None:
        self.config = config
        self.report = report
        self.restarts = 0
        self.slots = asyncio.Semaphore(config.parallel or available_cores())
        self._server = server
        self._starting = asyncio.Lock()
        self._workspaces: set[SandboxWorkspace] = set()
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: SandboxConfig | None = None) -> AsyncIterator[Sandbox]:
        """Start the server; on leaving, stop it and everything in it.

        Isolates as well as this machine can (`report` says how). Raises SandboxError, with what is missing and how to
        get it, where that is not at all; `config.unsafe` runs without isolation then, and warns.
        """
        config = config or SandboxConfig()
        sandbox = cls(config, *await start_server(config))
        try:
            yield sandbox
        finally:
            await sandbox._close()

    async def workspace(self) -> SandboxWorkspace:
        """A new, empty workspace."""
        workspace = SandboxWorkspace(self, *await self.make_folder())
        self._workspaces.add(workspace)
        return workspace

    async def make_folder(self) -> tuple[ServerProcess, int, Folder]:
        """An empty folder on a server that is alive, started anew if need be."""
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            if self._server.lost:
                await self._server.stop()
                self._server, self.report = await start_server(self.config)
                self.restarts += 1
            server = self._server
        number, descriptor = await server.open_workspace()
        return server, number, Folder(descriptor)

    def forget(self, workspace: SandboxWorkspace) -> None:
        self._workspaces.discard(workspace)

    def note_failure(self, why: str, *, retried: bool) -> None:
        _log.warning("an execution failed in the sandbox itself (%s)%s", why, "; trying it again" if retried else "")

    async def _close(self) -> None:
        self._closed = True
        for workspace in list(self._workspaces):
            workspace.close()
        async with self._starting:
            await self._server.stop()
