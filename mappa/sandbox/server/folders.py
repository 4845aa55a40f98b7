"""Workspaces as folders of the host, below one private folder. Their size is bound by looking, not by the kernel."""

from __future__ import annotations

import contextlib
import os
import tempfile

from .confine import Limits
from .trees import TooDeepError, remove, sizes


class HostFolders:
    """The part of an isolation that keeps workspaces, for those that cannot mount anything.

    Beside each workspace lies a folder for temporary files, which an isolation may use.
    """

    def __init__(self, limits: Limits, owner: int | None) -> None:
        self.folder: str | None = tempfile.mkdtemp(prefix="mappa-sandbox-", dir="/tmp")
        self._limits = limits
        self._owner = owner
        os.chmod(self.folder, 0o711)

    def open_workspace(self, number: int) -> int:
        path = self._path(number)
        self._make(path)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close_workspace(self, number: int) -> None:
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
        self._make(path)
        return path

    def _make(self, path: str) -> None:
        os.mkdir(path, 0o700)
        if self._owner is not None:
            os.chown(path, self._owner, self._owner)

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number}"

    def _temporary(self, number: int) -> str:
        return f"{self.folder}/{number}-tmp"
