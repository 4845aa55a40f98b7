"""Limits of the kernel on all processes of an execution together, where a cgroup v2 folder was delegated:

FOLDER                   holds no process itself
FOLDER/mappa-PID         one server's
FOLDER/mappa-PID/server  the server: a folder that limits those below it may not hold processes
FOLDER/mappa-PID/7       an execution, with memory.max and pids.max
"""

from __future__ import annotations

import contextlib
import errno
import os

from .confine import Limits

_NEEDED = ("memory", "pids")
_PREFIX = "mappa-"


def claim(folder: str, owner: int | None = None) -> int:
    """Move this process into a folder of its own below `folder`; returns a descriptor of the one for executions.

    `owner`: the user who will make their folders, where that is another one. Raises OSError, saying what is missing.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        present = _read(root, "cgroup.controllers").split()
        if missing := [name for name in _NEEDED if name not in present]:
            raise OSError(errno.ENOENT, f"sandbox.cgroup: {folder} has no controller {' and no '.join(missing)}")
        _remove_abandoned(root)
        own = f"{_PREFIX}{os.getpid()}"
        switched_on = " ".join(f"+{name}" for name in _NEEDED)
        os.mkdir(own, dir_fd=root)
        os.mkdir(f"{own}/server", dir_fd=root)
        _write(root, f"{own}/server/cgroup.procs", "0")
        _write(root, "cgroup.subtree_control", switched_on)
        _write(root, f"{own}/cgroup.subtree_control", switched_on)
        if owner is not None:
            for name in (own, f"{own}/cgroup.procs"):
                os.chown(name, owner, owner, dir_fd=root)
        return os.open(own, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    finally:
        os.close(root)


class Groups:
    """A folder for every execution, by number. Methods raise OSError."""

    def __init__(self, folder: int, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._ended: list[int] = []

    def open(self, number: int) -> None:
        """Make an execution's folder."""
        os.mkdir(str(number), dir_fd=self._folder)
        _write(self._folder, f"{number}/memory.max", str(self._limits.memory))
        _write(self._folder, f"{number}/pids.max", str(self._limits.processes))
        for optional, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap, or an old one
                _write(self._folder, f"{number}/{optional}", value)

    def enter(self, number: int) -> None:
        """Move the calling process, a fresh fork, into it."""
        _write(self._folder, f"{number}/cgroup.procs", "0")

    def close(self, number: int) -> bool:
        """Remove it; returns whether its memory ran out."""
        events = dict(line.split() for line in _read(self._folder, f"{number}/memory.events").splitlines())
        self._ended = [ended for ended in (*self._ended, number) if not _removed(self._folder, str(ended))]
        return int(events.get("oom_kill", 0)) > 0


def _remove_abandoned(root: int) -> None:
    """Folders of servers that were killed. One that lives keeps its own: it is not empty."""
    for name in os.listdir(root):
        if name.startswith(_PREFIX):
            with contextlib.suppress(FileNotFoundError):
                below = [part for part in os.listdir(f"/proc/self/fd/{root}/{name}") if part.isdecimal()]
                if all(_removed(root, f"{name}/{part}") for part in ("server", *below)):
                    _removed(root, name)


def _removed(folder: int, name: str) -> bool:
    """False while a process is in it, or the kernel still clears away what was killed there."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _read(folder: int, path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)


def _write(folder: int, path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
