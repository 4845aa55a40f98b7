"""Workspaces without a sandbox, for code that the tests themselves wrote: a folder, and a fork that runs in it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path

from mappa.types import ExecutionResult


class FolderWorkspace:
    """Obeys `mappa.types.Workspace`. A fork has pandas and scikit-learn loaded already, so a run costs milliseconds."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.closed = False

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        child = multiprocessing.get_context("fork").Process(target=_execute, args=(code, str(self.folder)))
        child.start()
        child.join(timeout or 60)
        if child.exitcode is None:
            child.kill()
            child.join()
            return ExecutionResult(outcome="timeout")
        return ExecutionResult(outcome="ok" if child.exitcode == 0 else "error", exit_code=child.exitcode)

    def files(self) -> Mapping[str, int]:
        return {
            str(path.relative_to(self.folder)): path.stat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def read(self, path: str, limit: int = 1 << 26) -> bytes:
        with open(self.folder / path, "rb") as file:
            return file.read(limit)

    def put(self, path: str, data: bytes) -> None:
        (self.folder / path).write_bytes(data)

    def close(self) -> None:
        self.closed = True


class Workspaces:
    """Opens FolderWorkspaces and remembers them, so that a test can look at what each was given."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[FolderWorkspace] = []

    async def open(self) -> FolderWorkspace:
        self.opened.append(FolderWorkspace(self.root / f"fresh-{len(self.opened)}"))
        return self.opened[-1]


def _execute(code: str, folder: str) -> None:
    """In the fork: an exception prints its traceback and ends the process with 1."""
    os.chdir(folder)
    exec(compile(code, "code.py", "exec"), {"__name__": "__main__"})
