"""Folders of the host that model-written code has filled: how much is in them, and away with them.

Whatever the code left there may be as deep as it had time to make it, deeper than a path is long or a stack holds.
So nothing here recurses or joins paths: every step is relative to an open folder and follows no symbolic link.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator, Iterator

DEEPEST = 128
"""Levels of folders that are measured. Each holds a descriptor, of which a server has 4096."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooDeepError(Exception):
    """More than DEEPEST levels of folders."""


def sizes(top: str) -> Generator[int, None, None]:
    """Bytes on disk of everything below `top`, one number for each file and folder (0). Code may be running there.

    What goes away meanwhile, or cannot be read, is left out. Raises TooDeepError.
    """
    opened: list[tuple[int, list[str]]] = []  # from `top` down, each with the folders in it that are still to be seen
    try:
        name, above = top, None
        while True:
            with contextlib.suppress(OSError):
                opened.append((os.open(name, _FOLDER, dir_fd=above), []))
                if len(opened) > DEEPEST:
                    raise TooDeepError
                yield from _sizes_in(*opened[-1])
            while opened and not opened[-1][1]:
                os.close(opened.pop()[0])
            if not opened:
                return
            above, name = opened[-1][0], opened[-1][1].pop()
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)


def _sizes_in(folder: int, folders: list[str]) -> Iterator[int]:
    """As `sizes`, of one folder; the names of those in it are added to `folders`. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                yield 0
            else:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_blocks * 512


def remove(top: str) -> None:
    """Delete a folder, also one with folders in it that their owner has shut. Nothing may be running there.

    Folders of a folder are moved up to `top` and emptied there in their turn. What cannot be deleted stays.
    """
    with contextlib.suppress(OSError):
        descriptor = _open_own(top, None)
        try:
            _empty(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(top)


def _empty(top: int) -> None:
    unique = secrets.token_hex(16)  # no name that is there already begins like this
    pending = _without_files(top)
    moved = 0
    while pending:
        name = pending.pop()
        with contextlib.suppress(OSError):
            folder = _open_own(name, top)
            try:
                for inner in _without_files(folder):
                    os.close(_open_own(inner, folder))  # one that is shut cannot be moved
                    os.rename(inner, f"{unique}-{moved}", src_dir_fd=folder, dst_dir_fd=top)
                    pending.append(f"{unique}-{moved}")
                    moved += 1
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _without_files(folder: int) -> list[str]:
    """Delete what is no folder; returns the names of the folders."""
    folders = []
    for name in os.listdir(folder):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            folders.append(name)
        except OSError:
            continue  # it stays, and so does its folder
    return folders


def _open_own(name: str, above: int | None) -> int:
    """Open a folder, which is given all of its owner's rights if that is us; root needs none."""
    if os.geteuid() != 0:
        found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{found}", 0o700)
        finally:
            os.close(found)
    return os.open(name, _FOLDER, dir_fd=above)
