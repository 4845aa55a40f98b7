"""What one execution is shut into: a pid, mount, ipc, uts and user namespace of its own, and one workspace.

The steps of a fork, in order: only its own workspace mounted, fresh /tmp, /dev/shm and /proc; another user in a
nested user namespace (which has a process count of its own, so that the limit on processes binds); rlimits, no
capabilities, no_new_privs, the system call filter. There is no network to take away: the server has none.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from . import syscalls as sys_
from .confine import Limits, Lock, limit_resources
from .launch import WORKSPACE, WORKSPACES
from .syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, mount

_AGENT = 1000  # the user that the model's code sees itself as
_TEMPORARY = ("/tmp", "/dev/shm")


@dataclass(frozen=True)
class Place:
    """What the launch found out. `execution_id`: the server's name for the user of executions; `overlaid`: folders
    of the interpreter under /tmp or /dev/shm."""

    execution_id: int
    overlaid: list[str]


class Namespaces:
    """The isolation of the fork server."""

    def __init__(self, place: Place, limits: Limits) -> None:
        self._place = place
        self._limits = limits
        self._lock = Lock()
        self._temporary_options = f"mode=1777,size={limits.workspace},nr_inodes={limits.files}"
        self._own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self._mount_temporary()
        self.folder: str | None = None
        mount("workspaces", WORKSPACES, "tmpfs", MS_NOSUID | MS_NODEV, "mode=711,size=1m")

    def open_workspace(self, number: int) -> int:
        """Make a workspace; returns a descriptor of its folder."""
        path = f"{WORKSPACES}/{number}"
        os.mkdir(path)
        owner = f"mode=700,uid={self._place.execution_id},gid={self._place.execution_id}"
        size = f"size={self._limits.workspace},nr_inodes={self._limits.files}"
        mount("workspace", path, "tmpfs", MS_NOSUID | MS_NODEV, f"{owner},{size}")
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close_workspace(self, number: int) -> None:
        path = f"{WORKSPACES}/{number}"
        sys_.umount(path)
        os.rmdir(path)

    def fork(self) -> int:
        """As os.fork, the child being the first process of a new pid namespace: when it ends, all in there end."""
        sys_.unshare(sys_.CLONE_NEWPID, "pid namespace")
        try:
            child = os.fork()
        except OSError:
            sys_.setns(self._own_pids, sys_.CLONE_NEWPID)
            raise
        if child:
            sys_.setns(self._own_pids, sys_.CLONE_NEWPID)
        return child

    def enter(self, workspace: int, cpu_seconds: int) -> None:
        """Shut the calling process, a fresh fork, in with one workspace."""
        os.setsid()
        sys_.unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS, "mount namespace")
        mount(f"{WORKSPACES}/{workspace}", WORKSPACE, None, MS_BIND)
        sys_.umount(WORKSPACES)
        self._mount_temporary()
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        os.chdir(WORKSPACE)
        self._become_agent()
        limit_resources(self._limits, cpu_seconds)
        self._lock.close()

    def kill(self, pid: int, pidfd: int) -> None:
        del pid
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def exit_code(self, status: int) -> int:
        return os.waitstatus_to_exitcode(status)

    def is_full(self, workspace: int) -> bool:
        del workspace
        return False  # a write that does not fit fails

    def close(self) -> None:
        """Nothing outlives the server's namespaces."""

    def _mount_temporary(self) -> None:
        kept = [(path, os.open(path, os.O_PATH)) for path in self._place.overlaid]
        for path in _TEMPORARY:
            mount("temporary", path, "tmpfs", MS_NOSUID | MS_NODEV, self._temporary_options)
        for path, descriptor in kept:
            os.makedirs(path)
            mount(f"/proc/self/fd/{descriptor}", path, None, MS_BIND | MS_REC)
            os.close(descriptor)

    def _become_agent(self) -> None:
        outer = self._place.execution_id
        if outer != 0:
            os.setresgid(outer, outer, outer)
            os.setresuid(outer, outer, outer)
            sys_.prctl(sys_.PR_SET_DUMPABLE, 1)  # the change of user made /proc/self unwritable
        sys_.unshare(sys_.CLONE_NEWUSER, "user namespace")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_AGENT} {outer} 1"),
            ("gid_map", f"{_AGENT} {outer} 1"),
        ):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(descriptor, text.encode())
            os.close(descriptor)
