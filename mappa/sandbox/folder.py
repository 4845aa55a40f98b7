"""A workspace's folder as the host may touch it: no link followed, no device opened, nothing that could block.

Model-written code owns what is in the folder and may have left anything there. Every path is resolved by the kernel
(openat2) below the folder, without symbolic links, without crossing into another mount; only regular files are read,
up to a limit, and what is read is bytes: the host never unpickles them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_DEEPEST = 32
"""Files further down are not listed."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Stamp(NamedTuple):
    """What tells whether a file is still the same. The change time cannot be set by programs."""

    size: int
    changed_ns: int
    inode: int


class Folder:
    """Owns `descriptor`, an open directory. Every method raises OSError for what it cannot or must not do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._owner = None if status.st_uid == os.geteuid() else (status.st_uid, status.st_gid)

    def snapshot(self) -> dict[str, Stamp]:
        """Regular files by path relative to the folder. Names that are no UTF-8 are shown with escapes."""
        with contextlib.suppress(PermissionError):
            os.fchmod(self._descriptor, 0o700)  # the model may have shut its own folder
        found: dict[str, Stamp] = {}
        pending = [("", 0)]
        while pending:
            prefix, depth = pending.pop()
            try:
                directory = self._open(prefix or ".", os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue  # unreadable, or gone since it was seen
            with _closing(directory), os.scandir(directory) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if depth < _DEEPEST:
                            pending.append((path + "/", depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            found[_shown(path)] = _stamp(entry.stat(follow_symlinks=False))
        return dict(sorted(found.items()))

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of a regular file of at most `limit` bytes."""
        with _closing(self._open(path, os.O_RDONLY)) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            if status.st_size > limit:
                raise OSError(errno.EFBIG, f"{status.st_size} bytes, the limit is {limit}", path)
            parts, left = [], limit + 1  # it may grow while it is read
            while left > 0 and (part := os.read(descriptor, min(left, 1 << 20))):
                parts.append(part)
                left -= len(part)
        if left <= 0:
            raise OSError(errno.EFBIG, f"more than {limit} bytes", path)
        return b"".join(parts)

    def put(self, path: str, data: bytes) -> tuple[str, Stamp]:
        """Write a file, in place of whatever had its name; folders above it are made.

        Returns the file as `snapshot` would list it.
        """
        *parents, name = path.split("/")
        with self._as_owner(), _closing(self._make_folders(parents)) as parent:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with _closing(os.open(name, flags, 0o644, dir_fd=parent)) as descriptor:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                status = os.fstat(descriptor)
        return _shown(os.path.normpath(path)), _stamp(status)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _make_folders(self, names: list[str]) -> int:
        directory = self._open(".", os.O_RDONLY | os.O_DIRECTORY)
        for depth, name in enumerate(names):
            with _closing(directory), contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
            directory = self._open("/".join(names[: depth + 1]), os.O_RDONLY | os.O_DIRECTORY)
        return directory

    def _open(self, path: str, flags: int) -> int:
        how = _OpenHow(
            flags=flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY,
            resolve=_BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | _NO_XDEV,
        )
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise OSError(errno.EINVAL, "a path holds no NUL", path)
        while True:
            size = ctypes.c_size_t(ctypes.sizeof(how))
            descriptor = _libc.syscall(_OPENAT2, self._descriptor, encoded, ctypes.byref(how), size)
            if descriptor >= 0:
                return int(descriptor)
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number), path)

    @contextlib.contextmanager
    def _as_owner(self) -> Iterator[None]:
        """As root, write as the sandbox's user: root does not exist inside, so it could own no file there.

        The file system ids are the calling thread's alone.
        """
        if self._owner is None:
            yield
            return
        uid, gid = self._owner
        old_gid, old_uid = _libc.setfsgid(gid), _libc.setfsuid(uid)
        try:
            yield
        finally:
            _libc.setfsuid(old_uid)
            _libc.setfsgid(old_gid)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_ctime_ns, status.st_ino)


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
