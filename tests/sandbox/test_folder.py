"""What the host may and may not do with a folder that model-written code has filled."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mappa.sandbox.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.txt").write_text("not yours")
    made = Folder(os.open(tmp_path / "inside", os.O_RDONLY | os.O_DIRECTORY))
    yield made
    made.close()


@pytest.fixture
def inside(tmp_path: Path, folder: Folder) -> Path:
    return tmp_path / "inside"


def _refusal(folder: Folder, path: str, limit: int = 100) -> int | None:
    with pytest.raises(OSError, match=r".") as caught:
        folder.read(path, limit)
    return caught.value.errno


def test_what_is_put_can_be_read_and_is_listed(folder: Folder) -> None:
    folder.put("a.txt", b"one")
    folder.put("deep/er/b.txt", b"")
    folder.put("a.txt", b"three")
    assert folder.read("a.txt", 5) == b"three"
    assert {path: stamp.size for path, stamp in folder.snapshot().items()} == {"a.txt": 5, "deep/er/b.txt": 0}


def test_ways_out_are_refused(folder: Folder, inside: Path) -> None:
    (inside / "link").symlink_to("../outside.txt")
    (inside / "up").symlink_to("..")
    (inside / "magic").symlink_to("/proc/self/root")
    assert _refusal(folder, "../outside.txt") == errno.EXDEV
    assert _refusal(folder, str(inside.parent / "outside.txt")) == errno.EXDEV
    assert _refusal(folder, "link") == errno.ELOOP
    assert _refusal(folder, "up/outside.txt") == errno.ELOOP
    assert _refusal(folder, "magic/etc/passwd") == errno.ELOOP
    assert _refusal(folder, "a\0b") == errno.EINVAL
    assert _refusal(folder, "x" * 5000) == errno.ENAMETOOLONG
    for path in ("../new.txt", "/new.txt", "up/new.txt", "", ".", ".."):
        with pytest.raises(OSError, match=r"."):
            folder.put(path, b"x")
    assert sorted(path.name for path in inside.parent.iterdir()) == ["inside", "outside.txt"]


def test_what_is_no_plain_file_is_refused_at_once(folder: Folder, inside: Path) -> None:
    os.mkfifo(inside / "pipe")
    (inside / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inside / "socket"))
    assert _refusal(folder, "pipe") == errno.EINVAL
    assert _refusal(folder, "folder") == errno.EINVAL
    assert _refusal(folder, "socket") == errno.ENXIO
    assert folder.snapshot() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device file")
def test_devices_are_refused(folder: Folder, inside: Path) -> None:
    os.mknod(inside / "zero", 0o20666, os.makedev(1, 5))
    assert _refusal(folder, "zero") == errno.EINVAL
    assert folder.snapshot() == {}


def test_size_is_limited(folder: Folder) -> None:
    folder.put("big", b"x" * 101)
    assert _refusal(folder, "big", limit=100) == errno.EFBIG
    assert len(folder.read("big", limit=101)) == 101


def test_put_replaces_whatever_has_the_name(folder: Folder, inside: Path) -> None:
    (inside / "link").symlink_to("../outside.txt")
    os.mkfifo(inside / "pipe")
    (inside / "sealed").write_text("x")
    (inside / "sealed").chmod(0)
    for path in ("link", "pipe", "sealed"):
        folder.put(path, b"new")
        assert folder.read(path, 10) == b"new"
    assert (inside.parent / "outside.txt").read_text() == "not yours"
    (inside / "folder").mkdir()
    with pytest.raises(OSError, match=r"."):
        folder.put("folder", b"x")


def test_names_of_all_kinds(folder: Folder, inside: Path) -> None:
    for name in (b"\xff.csv", "文件 ü.csv".encode(), b"new\nline", b"-rf"):
        (inside / os.fsdecode(name)).write_bytes(b"x")
    assert set(folder.snapshot()) == {"\\xff.csv", "文件 ü.csv", "new\nline", "-rf"}
    assert folder.read("文件 ü.csv", 10) == b"x"


def test_deep_folders_are_cut_off(folder: Folder) -> None:
    deep = "d/" * 40
    for depth in (10, 31):
        folder.put(f"{deep[: 2 * depth]}file", b"x")
    folder.put(f"{deep}file", b"x")
    assert [path.count("/") for path in folder.snapshot()] == [31, 10]


def test_a_change_is_seen_even_if_times_are_set_back(folder: Folder, inside: Path) -> None:
    folder.put("a", b"one")
    before = folder.snapshot()
    status = (inside / "a").stat()
    assert folder.snapshot() == before
    (inside / "a").write_bytes(b"two")
    os.utime(inside / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder.snapshot() != before


def test_no_descriptor_is_left_open(folder: Folder, inside: Path) -> None:
    (inside / "link").symlink_to("x")
    folder.put("d/e/f", b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        folder.snapshot()
        folder.put("d/e/f", b"x")
        folder.read("d/e/f", 10)
        _refusal(folder, "link")
        _refusal(folder, "d/e/f", limit=0)
        with pytest.raises(OSError, match=r"."):
            folder.put("link/f", b"x")
    assert len(os.listdir("/proc/self/fd")) == before
