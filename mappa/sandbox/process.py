"""A server process and the trainer's connection to it: starting, asking, losing and stopping it."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mappa.config import SandboxConfig
from mappa.errors import SandboxError
from mappa.sandbox.channel import Channel
from mappa.sandbox.execution import Capture, Ended
from mappa.sandbox.server.command import command, execution_environment
from mappa.sandbox.server.trees import remove

PATIENCE = 10.0
"""Seconds, over what was asked for, that a server may take to answer before it counts as hanging."""

_START_SECONDS = 120.0
_STARTS = 3
_STOP_SECONDS = 5.0
_MIB = 1 << 20


T = TypeVar("T")


class ServerLost(Exception):
    """The server died, hung or was stopped. Whatever it was doing is lost; a new one can be started."""


class ServerRefused(SandboxError):
    """The server could not set itself up: its isolation, or the modules to preload (`stage` says which).

    `number` is the errno where the kernel refused.
    """

    def __init__(self, message: str, number: int | None, stage: str) -> None:
        super().__init__(message)
        self.number = number
        self.stage = stage


@dataclass(eq=False)
class Run:
    """One execution in flight."""

    code: bytes
    stdout: Capture
    stderr: Capture
    report: Capture
    id: int = -1
    ended: asyncio.Future[Ended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def captures(self) -> tuple[Capture, Capture, Capture]:
        return self.stdout, self.stderr, self.report


class ServerProcess:
    """Made by `start`. Its methods belong on the event loop and never block it."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, log: int, patience: float = PATIENCE
    ) -> None:
        self.lost = False
        self.executions = 0
        """Begun so far."""
        self._patience = patience
        self._process = process
        self._log = log
        self._host_folder: str | None = None
        self._numbers = itertools.count(1)
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._opening: dict[int, asyncio.Future[int]] = {}
        self._runs: dict[int, Run] = {}
        self._channel = Channel(control, self._on_message, self._on_end)

    @classmethod
    async def start(cls, config: SandboxConfig, mode: str, patience: float = PATIENCE) -> ServerProcess:
        """Start a server and wait until it has preloaded. Raises ServerRefused, or SandboxError where it dies.

        One that ends without a word was most likely killed, and is started again, twice at most.
        """
        for _ in range(_STARTS):
            server = cls(*await asyncio.to_thread(_spawn, mode, config.cgroup), patience)
            server._channel.send({"limits": limits_of(config), "preload": list(config.preload)})
            try:
                await server._become_ready()
            except ServerLost:
                words = server._last_words()
                await server.stop()
                if words:
                    break
            except BaseException:
                await server.stop()
                raise
            else:
                return server
        raise SandboxError(f"the sandbox's server died while it started: {words or 'it was killed'}")

    async def _become_ready(self) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                told = await self._ready
        except TimeoutError:
            raise SandboxError(f"the sandbox's server was not ready after {_START_SECONDS:.0f} s") from None
        if told["op"] == "failed":
            raise ServerRefused(told["error"], told.get("errno"), told.get("stage", "isolation"))
        self._host_folder = told["folder"]

    async def open_workspace(self) -> tuple[int, int]:
        """Make a workspace. Returns its number and a descriptor of its folder."""
        self._check_alive()
        number = next(self._numbers)
        self._opening[number] = asyncio.get_running_loop().create_future()
        self._channel.send({"op": "open", "workspace": number})
        try:
            return number, await self._answer(self._opening[number], self._patience)
        finally:
            self._opening.pop(number, None)

    def close_workspace(self, number: int) -> None:
        if not self.lost:
            self._channel.send({"op": "close", "workspace": number})

    async def execute(self, run: Run, workspace: int, timeout: float) -> Ended:
        """Run `run.code` to its end. Raises ServerLost."""
        self._check_alive()
        self.executions += 1
        run.id = next(self._numbers)
        self._runs[run.id] = run
        request = {"op": "run", "id": run.id, "workspace": workspace, "timeout": timeout}
        self._channel.send(request, [_memory_file(run.code), *(capture.hand_over() for capture in run.captures)])
        try:
            return await self._answer(run.ended, timeout + self._patience)
        finally:
            if not run.ended.done() or run.ended.cancelled():
                self.kill(run)
            self._runs.pop(run.id, None)

    async def _answer(self, answer: asyncio.Future[T], seconds: float) -> T:
        """What the server answers, unless it takes so long that it must be hanging: then it is killed."""
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            self._process.kill()
            self._channel.close()
            self._lose("did not answer")
            raise ServerLost("the server did not answer") from None

    def kill(self, run: Run) -> None:
        self._channel.send({"op": "kill", "id": run.id})

    async def stop(self) -> None:
        """End the server and everything that runs in it."""
        self._channel.close()
        self._lose("was stopped")
        try:
            await asyncio.to_thread(self._process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        if self._host_folder is not None:
            await asyncio.to_thread(remove, self._host_folder)
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _last_words(self) -> str:
        """The end of what it wrote to stderr."""
        return os.pread(self._log, 4096, max(0, os.fstat(self._log).st_size - 4096)).decode("utf-8", "replace").strip()

    def _on_message(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message.pop("op"):
            case "ready":
                self._ready.set_result({"op": "ready", **message})
            case "failed":
                self._ready.set_result({"op": "failed", **message})
            case "opened":
                self._on_opened(message, descriptors)
            case "ended":
                run = self._runs.get(message.pop("id"))
                if run is not None and not run.ended.done():
                    run.ended.set_result(msgspec.convert(message, Ended))

    def _on_opened(self, message: dict[str, Any], descriptors: list[int]) -> None:
        waiting = self._opening.get(message["workspace"])
        if waiting is None or waiting.done():
            for descriptor in descriptors:
                os.close(descriptor)
            self.close_workspace(message["workspace"])
        elif descriptors:
            waiting.set_result(descriptors[0])
        else:
            waiting.set_exception(SandboxError(f"no new workspace: {message['error']}"))

    def _on_end(self) -> None:
        self._lose("died")

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = True
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._opening.values()]
        waiting += [run.ended for run in self._runs.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(ServerLost(f"the server {why}"))
                future.exception()  # nobody may be waiting for it

    def _check_alive(self) -> None:
        if self.lost:
            raise ServerLost("the server is gone")


def limits_of(config: SandboxConfig) -> dict[str, int]:
    return {
        "memory": config.memory_mb * _MIB,
        "file": config.file_mb * _MIB,
        "workspace": config.workspace_mb * _MIB,
        "files": config.workspace_files,
        "processes": config.processes,
    }


def _spawn(mode: str, cgroup: str) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Start the server's first process: vfork and exec, whatever the size of this one; an empty environment."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = os.memfd_create("sandbox-server-stderr", os.MFD_CLOEXEC)
    trainer = os.pidfd_open(os.getpid())
    try:
        with theirs:
            process = subprocess.Popen(
                command(str(Path(__file__).parent), mode, str(trainer), cgroup),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=execution_environment(),
                cwd="/",
                pass_fds=(trainer,),
                start_new_session=True,
            )
    except OSError:
        ours.close()
        os.close(log)
        raise
    finally:
        os.close(trainer)
    return process, ours, log


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("code", os.MFD_CLOEXEC)
    while data:
        data = data[os.write(descriptor, data) :]
    return descriptor
