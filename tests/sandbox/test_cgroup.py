"""cgroup v2 folders for executions. Few machines that build this delegate one, so the files stand in for the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from mappa.config import SandboxConfig
from mappa.errors import SandboxError
from mappa.sandbox import Sandbox
from mappa.sandbox.server import cgroup
from mappa.sandbox.server.confine import Limits

LIMITS = Limits(memory=1 << 28, file=1, workspace=1, files=1, processes=7)
FILES = {
    "cgroup.controllers": "cpu memory pids",
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "memory.max": "",
    "memory.swap.max": "",
    "pids.max": "",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which new ones get the kernel's files, and go as in cgroup v2: with them, but not with processes."""
    mkdir, rmdir = os.mkdir, os.rmdir

    def make(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        fill(Path(f"/proc/self/fd/{dir_fd}", path))

    def remove(path: str, *, dir_fd: int | None = None) -> None:
        whole = Path(f"/proc/self/fd/{dir_fd}", path)
        if (whole / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "busy")
        for name in FILES:
            (whole / name).unlink()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(cgroup.os, "mkdir", make)
    monkeypatch.setattr(cgroup.os, "rmdir", remove)
    fill(tmp_path)
    return tmp_path


def fill(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


def test_an_execution_has_a_folder_with_its_limits(folder: Path) -> None:
    own = folder / f"mappa-{os.getpid()}"
    groups = cgroup.Groups(cgroup.claim(str(folder)), LIMITS)
    assert (own / "server" / "cgroup.procs").read_text() == "0"
    for place in (folder, own):
        assert (place / "cgroup.subtree_control").read_text() == "+memory +pids"
    groups.open(3)
    groups.enter(3)
    found = {name: (own / "3" / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max")}
    assert found == {"memory.max": str(1 << 28), "memory.swap.max": "0", "pids.max": "7"}
    assert not groups.close(3)
    assert (own / "3").exists()  # busy as long as the kernel has not cleared it
    (own / "3" / "cgroup.procs").write_text("")
    groups.open(4)
    (own / "4" / "memory.events").write_text("oom 1\noom_kill 2\n")
    assert groups.close(4)
    assert sorted(path.name for path in own.iterdir() if path.is_dir()) == ["server"]


def test_folders_of_dead_servers_are_removed(folder: Path) -> None:
    for name in ("mappa-1", "mappa-1/server", "mappa-1/9", "mappa-2", "mappa-2/server"):
        (folder / name).mkdir()
        fill(folder / name)
    (folder / "mappa-2/server/cgroup.procs").write_text("2")
    cgroup.claim(str(folder))
    assert sorted(path.name for path in folder.glob("mappa-*")) == sorted(["mappa-2", f"mappa-{os.getpid()}"])


@pytest.mark.parametrize(("controllers", "message"), [("cpu pids", "no controller memory"), (None, "No such file")])
def test_a_folder_that_cannot_bound_is_refused(tmp_path: Path, controllers: str | None, message: str) -> None:
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers)

    async def main() -> None:
        async with Sandbox.open(SandboxConfig(cgroup=str(tmp_path), preload=())):
            pass

    with pytest.raises(SandboxError, match=message):
        asyncio.run(main())
