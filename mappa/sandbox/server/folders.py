"""Workspaces as folders of the host, below one private folder. Their size is bound by looking, not by the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import traceback
from collections.abc import Sequence

from . import syscalls as sys_
from .confine import Limits
from .trees import TooDeepError, remove, sizes


class HostFolders:
    """The part of an isolation that keeps workspaces, for those that cannot mount anything.

    Beside each workspace lies a folder for temporary files, which an isolation may use. `users`: whom workspaces belong
    to, one after the other; nobody but ourselves where there are none.
    """

    def __init__(self, limits: Limits, users: Sequence[int] = ()) -> None:
        self.folder: str | None = tempfile.mkdtemp(prefix="mappa-sandbox-", dir="/tmp")
        self._limits = limits
        self._users = users
        self._removers: set[int] = set()
        os.chmod(self.folder, 0o711)

    def open_workspace(self, number: int) -> int:
        path = self._path(number)
        self._make(path, number)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close_workspace(self, number: int) -> None:
        """Remove it, in a process that nobody waits for: code may have made so many folders that it takes a while."""
        self._removers -= {pid for pid in self._removers if os.waitpid(pid, os.WNOHANG)[0]}
        try:
            remover = os.fork()
        except OSError:  # no room for a process: then it is done here
            self._remove(number)
            return
        if remover:
            self._removers.add(remover)
            return
        try:
            sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)  # the trainer removes what a lost server leaves
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # else the trainer would not see that the server is lost
            self._remove(number)
        except BaseException:  # noqa: BLE001 - whatever it is, the fork must not go on as a second server
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def _remove(self, number: int) -> None:
        remove(self._path(number))
        remove(self._temporary(number))

    def fork(self) -> int:
        return os.fork()

    def is_full(self, workspace: int) -> bool:
        """More bytes or files than a workspace may hold, or folders too deep; its temporary files count too."""
        size = count = 0
        try:
            for top in (self._path(workspace), self._temporary(workspace)):
                with contextlib.closing(sizes(top)) as found:
                    for held in found:
                        size += held
                        count += 1
                        if size > self._limits.workspace or count > self._limits.files:
                            return True
        except TooDeepError:
            return True
        return False

    def close(self) -> None:
        if self.folder:
            remove(self.folder)

    def renew_temporary(self, workspace: int) -> str:
        """An empty folder for temporary files, in place of what an earlier execution left there."""
        path = self._temporary(workspace)
        remove(path)
        self._make(path, workspace)
        return path

    def user_of(self, workspace: int) -> int:
        """Who executes there."""
        return self._users[workspace % len(self._users)] if self._users else os.geteuid()

    def _make(self, path: str, workspace: int) -> None:
        os.mkdir(path, 0o700)
        if self._users:
            os.chown(path, self.user_of(workspace), self.user_of(workspace))

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number}"

    def _temporary(self, number: int) -> str:
        return f"{self.folder}/{number}-tmp"
