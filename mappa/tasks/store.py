"""A built folder that is either whole or absent: made beside its place under a lock, sealed by checksums, moved in.

A process that is killed while building leaves only `NAME.partial`, which the next builder removes. What was sealed is
checked file by file whenever it is opened, so a damaged cache is named and never used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mappa.errors import DiskError, TaskError

MANIFEST = "manifest.json"


def open_or_build(folder: Path, build: Callable[[Path], None], *, megabytes: int) -> Path:
    """`folder`, verified; built first by `build(temporary_folder)` where it is absent.

    `megabytes` is the disk space a build needs. Raises TaskError for a damaged folder, DiskError for a full disk.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f".{folder.name}.lock"):
            if not folder.exists():  # another process may have built it while this one waited
                _build(folder, build, megabytes)
    verify(folder)
    return folder


def verify(folder: Path) -> None:
    """Compare every file of a sealed folder with its checksum. Raises TaskError that names the first that differs."""
    again = f"delete {folder} and run again, it will be rebuilt"
    try:
        sealed = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=dict[str, str])
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        raise TaskError(f"the task cache {folder} has no readable {MANIFEST}: {again}") from None
    found = _checksums(folder)
    for name in sorted(sealed.keys() | found.keys()):
        if found.get(name) != sealed.get(name):
            fault = "is missing" if name not in found else "has changed" if name in sealed else "does not belong there"
            raise TaskError(f"the task cache is damaged: {folder / name} {fault}; {again}")


def _build(folder: Path, build: Callable[[Path], None], megabytes: int) -> None:
    free = shutil.disk_usage(folder.parent).free >> 20
    if free < megabytes:
        raise DiskError(
            f"{folder.parent} has {free} MiB free and the tasks need {megabytes}: make room, or move the cache"
        )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        (partial / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(_checksums(partial)), indent=1))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise DiskError(f"the disk of {folder.parent} is full: make room, or move the cache") from error
        raise
    partial.rename(folder)


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive among processes; released by the kernel if the holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
