"""Isolation where this machine does not let us make namespaces: bubblewrap for each execution, or, unsafe, none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import PurePath
from typing import NoReturn

from . import syscalls as sys_
from .command import command, execution_environment
from .confine import Limits, Lock, become, limit_resources, tasks_of
from .folders import HostFolders
from .launch import EXECUTION_ID, SERVER_CODE, SYSTEM, SYSTEM_SETTINGS, WORKSPACE, execution_users, interpreter_folders

_TRIAL = """
import os
if os.getuid() == 0: os.setresuid({user}, {user}, {user})
import wave
"""
"""That the interpreter can be read by the user executions become."""


class Bubblewrap(HostFolders):
    """Every execution starts bubblewrap, which starts a plain interpreter: nothing is preloaded.

    As root it is run with root's powers and the interpreter becomes another user before it reads the code; as an
    ordinary user it makes a user namespace (or is installed set-uid).
    """

    def __init__(self, limits: Limits) -> None:
        program = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
        if program is None:
            raise OSError(errno.ENOENT, "bubblewrap is not installed")
        self._program = program
        self._limits = limits
        self._is_root = os.geteuid() == 0
        trial = [sys.executable, "-I", "-B", "-c", _TRIAL.format(user=EXECUTION_ID)]
        tried = subprocess.run([*self._wrapper("/tmp"), *trial], capture_output=True, text=True, check=False)
        if tried.returncode:
            raise OSError(errno.EPERM, f"bubblewrap does not work here: {tried.stderr.strip()}")
        super().__init__(limits, execution_users() if self._is_root else ())

    def enter(self, workspace: int, cpu_seconds: int) -> NoReturn:
        """Replace the calling process by one that runs `execute` inside."""
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        user = self.user_of(workspace)
        beside = tasks_of(user) if self._is_root else 0  # else it is in a user namespace, which counts for itself
        settings = f"{user} {beside} {cpu_seconds} {self._limits.to_json()}"
        inner = command(os.path.dirname(SERVER_CODE), "execute", settings)
        os.execve(self._program, [*self._wrapper(self._path(workspace)), *inner], execution_environment())

    def kill(self, pid: int, pidfd: int) -> None:
        del pid
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def exit_code(self, status: int) -> int:
        """Bubblewrap passes a signal on as 128 + its number."""
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if 128 < code <= 128 + signal.SIGRTMAX else code

    def _wrapper(self, workspace: str) -> list[str]:
        words = [self._program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        words += ["--die-with-parent", "--new-session", "--hostname", "sandbox"]
        if not self._is_root:
            words += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
        for path in SYSTEM:
            if os.path.islink(path):
                words += ["--symlink", os.readlink(path), path]
            else:
                words += ["--ro-bind-try", path, path]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for path in ("/tmp", "/dev/shm"):
            words += ["--perms", "1777", "--size", str(self._limits.workspace), "--tmpfs", path]
        shown = (*SYSTEM_SETTINGS, *interpreter_folders())
        for folder in sorted({str(parent) for path in shown for parent in PurePath(path).parents} - {"/"}):
            words += ["--perms", "0755", "--dir", folder]  # else they are root's alone
        for path in shown:
            words += ["--ro-bind-try", path, path]
        words += ["--ro-bind", os.path.dirname(os.path.realpath(__file__)), SERVER_CODE]
        return [
            *words,
            "--bind",
            workspace,
            WORKSPACE,
            "--chdir",
            WORKSPACE,
            "--remount-ro",
            "/dev",
            "--remount-ro",
            "/",
        ]


def confine_execution(settings: str) -> None:
    """Inside bubblewrap, before the code is read: another user, rlimits, no capabilities, the filter."""
    user, beside, cpu_seconds, limits = settings.split(" ", 3)
    lock = Lock()
    if os.geteuid() == 0:
        become(int(user))
    limit_resources(Limits.from_json(limits), int(cpu_seconds), beside=int(beside))
    lock.close()


class Nothing(HostFolders):
    """No isolation: a fork with rlimits, in its own session. Only for code one would run oneself."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)

    def enter(self, workspace: int, cpu_seconds: int) -> None:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.chdir(self._path(workspace))
        limit_resources(self._limits, cpu_seconds, beside=None)

    def kill(self, pid: int, pidfd: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.killpg(pid, signal.SIGKILL)

    def exit_code(self, status: int) -> int:
        return os.waitstatus_to_exitcode(status)
