"""Folders deeper than a path is long or a stack holds: measured down to a depth, deleted whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mappa.sandbox.server.trees import DEEPEST, TooDeepError, remove, sizes
from tests.sandbox.elsewhere import run_elsewhere

SHUT = """
import os, tempfile
from mappa.sandbox.server.trees import remove
top = tempfile.mkdtemp()
os.makedirs(top + "/a/b/c")
for shut in ("/a/b/c", "/a/b", "/a", ""):
    os.chmod(top + shut, 0)
remove(top)
print(os.path.lexists(top))
"""


def _nest(top: Path, levels: int) -> None:
    """Folders in folders, a file and a link that leads out in each."""
    folder = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=folder)
        os.symlink("/", "link", dir_fd=folder)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


def test_a_deep_folder_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("1")
    top = tmp_path / "top"
    top.mkdir()
    (top / "out").symlink_to(tmp_path)
    _nest(top, 3000)
    (top / "beside").mkdir()
    _nest(top / "beside", 3)
    descriptors = len(os.listdir("/proc/self/fd"))
    remove(str(top))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    remove(str(top))  # gone already


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user there is no other")
def test_folders_that_their_owner_has_shut_are_deleted() -> None:
    told = run_elsewhere("-c", SHUT)
    assert told.stdout == "False\n", told.stderr


def test_sizes_of_all_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "big").write_bytes(bytes(1 << 20))
    (tmp_path / "a" / "small").write_bytes(b"1")
    (tmp_path / "out").symlink_to("/usr")
    found = list(sizes(str(tmp_path)))
    assert len(found) == 5
    assert 1 << 20 <= sum(found) < 2 << 20
    assert list(sizes(str(tmp_path / "nothing"))) == []


def test_what_is_too_deep_to_be_measured_is_told(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    _nest(tmp_path, DEEPEST - 1)
    assert len(list(sizes(str(tmp_path)))) == 3 * (DEEPEST - 1)
    remove(str(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    _nest(tmp_path / "e", DEEPEST - 1)
    with pytest.raises(TooDeepError):
        list(sizes(str(tmp_path)))
    assert len(os.listdir("/proc/self/fd")) == descriptors
