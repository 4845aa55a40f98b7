"""The server's loop: one thread, one poll. Requests come in, executions are forked, watched, reaped and reported.

Messages are JSON, one per packet of a SOCK_SEQPACKET socket (descriptor 0):

    in   {"op": "open", "workspace": 7}                         -> {"op": "opened", "workspace": 7} + its folder
         {"op": "close", "workspace": 7}
         {"op": "run", "id": 3, "workspace": 7, "timeout": 20.0} + code, stdout, stderr, report
                                                                -> {"op": "ended", "id": 3, "status": 0, ...}
         {"op": "kill", "id": 3}
    out  {"op": "ready", ...} once, or {"op": "failed", "error": ...} and the end

When the trainer's end of the socket is closed the server exits; as the first process of its pid namespace it takes
every execution with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from . import heap, memory, runner
from .cgroup import Groups, claim
from .confine import Limits, lower_limit

_DESCRIPTORS = 4096
_LOOK_SECONDS = 0.1
_CORES = len(os.sched_getaffinity(0))

Message = dict[str, Any]


class Isolation(Protocol):
    """How executions are kept apart. Methods raise OSError."""

    folder: str | None
    """Of the host, where workspaces are; None where they are in memory."""

    def open_workspace(self, number: int) -> int:
        """Returns a descriptor of the new folder."""
        ...

    def close_workspace(self, number: int) -> None: ...

    def fork(self) -> int: ...

    def enter(self, workspace: int, cpu_seconds: int) -> None:
        """Shut in the calling process, a fresh fork. May replace the program by one that does, and runs the code."""
        ...

    def kill(self, pid: int, pidfd: int) -> None: ...

    def exit_code(self, status: int) -> int: ...

    def is_full(self, workspace: int) -> bool:
        """Asked now and then while something runs there: does it hold more than it may?"""
        ...

    def close(self) -> None: ...


@dataclass
class Execution:
    id: int
    pid: int
    pidfd: int
    started: int
    """Read end of the pipe on which the fork says that the model's code is about to run."""
    workspace: int
    begin: float
    deadline: float
    cpu_limit: int
    verdict: str | None = None
    looked_at: float = 0.0
    """When its memory is worth another look."""


class Server:
    def __init__(
        self, control: socket.socket, trainer: int, isolation: Isolation, limits: Limits, groups: Groups | None
    ) -> None:
        self._control = control
        self._trainer = trainer
        self._isolation = isolation
        self._limits = limits
        self._groups = groups
        self._next_look = 0.0
        self._poll = select.poll()
        self._running: dict[int, Execution] = {}  # by pidfd
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._poll.register(control, select.POLLIN)
        if trainer >= 0:
            self._poll.register(trainer, select.POLLIN)
        control.setblocking(False)

    def serve(self) -> None:
        """Until the trainer goes away."""
        while True:
            for descriptor, event in self._poll.poll(self._patience()):
                if descriptor in self._running:
                    self._reap(self._running.pop(descriptor))
                    continue
                if descriptor == self._trainer:
                    return
                if event & select.POLLOUT:
                    self._flush()
                if event & ~select.POLLOUT and not self._receive():
                    return
            self._enforce_deadlines()
            self._look_after()

    def close(self) -> None:
        """End all executions."""
        for execution in self._running.values():
            self._isolation.kill(execution.pid, execution.pidfd)
        self._isolation.close()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Queue a message. The descriptors are closed once they are sent."""
        self._unsent.append((json.dumps(message).encode(), list(descriptors)))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._control, [data], descriptors)
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionError):
                return  # the next receive sees the end
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        self._poll.modify(self._control, select.POLLIN | (select.POLLOUT if self._unsent else 0))

    def _receive(self) -> bool:
        """Answer one request. False at the end of the connection."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if not data:
            return False
        request = json.loads(data)
        match request["op"]:
            case "run":
                self._run(request, descriptors)
            case "kill":
                for execution in self._running.values():
                    if execution.id == request["id"]:
                        self._kill(execution, "killed")
            case "open":
                self._open(request["workspace"])
            case "close":
                for execution in self._running.values():
                    if execution.workspace == request["workspace"]:
                        self._kill(execution, "killed")
                self._isolation.close_workspace(request["workspace"])
        return True

    def _open(self, number: int) -> None:
        try:
            folder = self._isolation.open_workspace(number)
        except OSError as error:
            self.send({"op": "opened", "workspace": number, "error": str(error)})
        else:
            self.send({"op": "opened", "workspace": number}, [folder])

    def _run(self, request: Message, descriptors: list[int]) -> None:
        started, starter = os.pipe()
        begin = time.monotonic()
        try:
            if self._groups is not None:
                self._groups.open(request["id"])
            pid = self._isolation.fork()
        except OSError as error:
            self.send({"op": "ended", "id": request["id"], "failure": f"fork: {error}"})
            os.close(started)
        else:
            if pid == 0:
                _become_execution(self._isolation, self._groups, request, [*descriptors, starter])
            pidfd = os.pidfd_open(pid)
            self._running[pidfd] = Execution(
                id=request["id"],
                pid=pid,
                pidfd=pidfd,
                started=started,
                workspace=request["workspace"],
                begin=begin,
                deadline=begin + request["timeout"],
                cpu_limit=_cpu_limit(request["timeout"]),
            )
            self._poll.register(pidfd, select.POLLIN)
        for descriptor in (*descriptors, starter):
            os.close(descriptor)

    def _reap(self, execution: Execution) -> None:
        self._poll.unregister(execution.pidfd)
        self._isolation.kill(execution.pid, execution.pidfd)  # what it left running, where it can leave anything
        _, status, usage = os.wait4(execution.pid, 0)
        os.close(execution.pidfd)
        started = os.read(execution.started, 4096)
        os.close(execution.started)
        if self._groups is not None and self._groups.close(execution.id) and execution.verdict is None:
            execution.verdict = "memory"
        cpu, exit_code = usage.ru_utime + usage.ru_stime, self._isolation.exit_code(status)
        if execution.verdict is None and exit_code < 0 and cpu >= execution.cpu_limit:
            execution.verdict = "timeout"
        ended = {
            "op": "ended",
            "id": execution.id,
            "exit_code": exit_code,
            "verdict": execution.verdict,
            "cpu": cpu,
            "wall": time.monotonic() - execution.begin,
        }
        if started != b"started" and execution.verdict is None:
            ended["failure"] = started.decode("utf-8", "replace") or "ended before it began"
        self.send(ended)

    def _patience(self) -> float | None:
        """Milliseconds until there is something to do that nobody asks for."""
        deadlines = [execution.deadline for execution in self._running.values() if execution.verdict is None]
        if not deadlines:
            return None
        return max(0.0, (min(self._next_look, *deadlines) - time.monotonic()) * 1000 + 1)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for execution in self._running.values():
            if now >= execution.deadline:
                self._kill(execution, "timeout")

    def _look_after(self) -> None:
        """What no rlimit bounds: the memory of all processes of an execution together, and a folder on the host."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        watched = {run.pid: run for run in self._running.values() if run.verdict is None and run.looked_at <= now}
        if not watched:
            return
        for pid, resident in memory.trees(watched).items():
            execution = watched[pid]
            hoards = self._groups is None and sum(resident.values()) > self._limits.memory
            if hoards and memory.proportional(resident) > self._limits.memory:
                self._kill(execution, "memory")
            elif self._isolation.is_full(execution.workspace):
                self._kill(execution, "disk-limit")
            execution.looked_at = now + 20 * (time.monotonic() - now)  # a look that takes long is taken rarely

    def _kill(self, execution: Execution, verdict: str) -> None:
        if execution.verdict is None:
            execution.verdict = verdict
            self._isolation.kill(execution.pid, execution.pidfd)


def _become_execution(
    isolation: Isolation, groups: Groups | None, request: Message, descriptors: list[int]
) -> NoReturn:
    """In the fork: arrange the descriptors, shut everything else, enter the isolation, run the code."""
    try:
        if groups is not None:
            groups.enter(request["id"])
        code, out, err, report, starter = (_raised(descriptor) for descriptor in descriptors)
        null = _raised(os.open("/dev/null", os.O_RDONLY))
        for target, descriptor in enumerate((null, out, err, report, starter, code)):
            os.dup2(descriptor, target)
        os.closerange(runner.CODE + 1, _DESCRIPTORS)
        isolation.enter(request["workspace"], _cpu_limit(request["timeout"]))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the trainer is told and the fork must not go on
        os.write(runner.STARTED, f"{type(error).__name__}: {error}".encode()[:4096])
        os._exit(1)
    runner.run()


def _cpu_limit(timeout: float) -> int:
    """CPU-seconds of one process, threads included, that no execution can reach within its time."""
    return int(timeout * _CORES) + 2


def _raised(descriptor: int) -> int:
    """A duplicate out of the way of the fixed numbers."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64)


def main(
    make_isolation: Callable[[Limits], Isolation],
    *,
    trainer: int = -1,
    cgroup: str = "",
    groups: int | None = None,
    preload: bool = True,
) -> None:
    """Read the settings, preload, say so, serve. What goes wrong before is told as "failed".

    `trainer`: a pidfd, where no guard watches it. `groups`: the cgroup for executions, where it is claimed already;
    else `cgroup` is, if it is not empty.
    """
    control = socket.socket(fileno=0)
    settings = json.loads(control.recv(1 << 16))
    begin = time.monotonic()
    stage = "isolation"
    try:
        lower_limit(resource.RLIMIT_NOFILE, _DESCRIPTORS)
        limits = Limits(**settings["limits"])
        if cgroup:
            groups = claim(cgroup)
        isolation = make_isolation(limits)
        stage = "preload"
        heap.preload(settings["preload"] if preload else ())
    except (OSError, ImportError) as error:
        told = {"op": "failed", "stage": stage, "error": str(error), "errno": getattr(error, "errno", None)}
        control.send(json.dumps(told).encode())
        return
    runner.hide()
    heap.settle()
    server = Server(control, trainer, isolation, limits, None if groups is None else Groups(groups, limits))
    server.send({"op": "ready", "preload_seconds": time.monotonic() - begin, "folder": isolation.folder})
    try:
        server.serve()
    finally:
        server.close()
