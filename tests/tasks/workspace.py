"""A Workspace without a sandbox: a folder and a child process. For code that the tests themselves wrote."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from mappa.types import ExecutionResult


class FolderWorkspace:
    """Obeys `mappa.types.Workspace` over a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-", cwd=self.folder,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            stdout, stderr = await asyncio.wait_for(child.communicate(code.encode()), timeout or 60)
        except TimeoutError:
            child.kill()
            await child.wait()
            return ExecutionResult(outcome="timeout")
        return ExecutionResult(
            outcome="ok" if child.returncode == 0 else "error",
            exit_code=child.returncode,
            stdout=stdout.decode(),
            stderr=stderr.decode(),
        )

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
        pass
