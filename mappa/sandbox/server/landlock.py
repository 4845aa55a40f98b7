"""Isolation where nothing may make namespaces: Landlock for files and signals, seccomp for the rest, rlimits.

Forked from the preloaded server, so as fast as namespaces. Without a pid namespace, what an execution leaves running
is ended by a warden, one for each:

    server -> warden (a Landlock domain: signals do not leave it) -> the model's code (a second domain within)

kill(-1) from the warden reaches all of its domain and nothing else, at once and before any of them can fork again; the
model's code, one domain further in, cannot signal the warden. All that runs there becomes the warden's child in the
end (it is their subreaper), so none is out of sight of those who sum up memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import tempfile
from types import FrameType
from typing import NoReturn

from . import syscalls as sys_
from .confine import Limits, Lock, become, limit_resources, tasks_of
from .folders import HostFolders
from .launch import (
    CAP_SETGID,
    CAP_SETUID,
    EXECUTION_ID,
    SYSTEM,
    SYSTEM_SETTINGS,
    are_mapped,
    execution_users,
    has_capabilities,
    interpreter_folders,
)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_NEEDED_ABI = 6
"""The first with scopes for signals and abstract sockets: Linux 6.12."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_MAKE_CHAR, _MAKE_BLOCK, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 15
_EVERYTHING = (1 << 16) - 1
_OWN = _EVERYTHING & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILES_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_BIND_TCP_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_FACTS = ("cpuinfo", "meminfo", "stat", "loadavg", "uptime")
# Of /proc/self: not net, nor task, which leads to it, since that is the host's.
_OWN_FACTS = ("auxv", "cmdline", "comm", "environ", "fd", "io", "limits")
_OWN_MEMORY = ("maps", "mem", "oom_score_adj", "smaps", "stat", "statm", "status")

_libc = ctypes.CDLL(None, use_errno=True)


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The version of Landlock that this kernel speaks; 0: none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


class Domain:
    """Rules being collected. Whatever is not allowed is denied once `enter` was called, for all descendants too."""

    def __init__(self, *, files: bool) -> None:
        attributes = _RulesetAttr(scoped=_SIGNALS | _ABSTRACT_SOCKETS)
        if files:
            attributes.files, attributes.network = _EVERYTHING, _BIND_TCP_CONNECT_TCP
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        self._ruleset = _checked(_libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), size, 0), "new rule set")

    def allow(self, path: str, access: int) -> None:
        """`access` to what is at `path` and below. Nothing where nothing is there."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if not os.path.isdir(path):
            access &= _FILES_ONLY
        rule = _PathBeneath(access, descriptor)
        try:
            _checked(_libc.syscall(_ADD_RULE, self._ruleset, 1, ctypes.byref(rule), 0), f"rule for {path}")
        finally:
            os.close(descriptor)

    def enter(self) -> None:
        sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
        _checked(_libc.syscall(_RESTRICT_SELF, self._ruleset, 0), "enter the domain")
        os.close(self._ruleset)


class Landlock(HostFolders):
    """A fork of the server in a Landlock domain. As root it becomes another user as well."""

    def __init__(self, limits: Limits) -> None:
        if abi() < _NEEDED_ABI:
            version = f"version {abi()}" if abi() else "none, or it is switched off or forbidden"
            raise OSError(errno.ENOSYS, f"Landlock {_NEEDED_ABI} (Linux 6.12) is needed; this kernel has {version}")
        self._separate = os.geteuid() == 0 and are_mapped(EXECUTION_ID)
        if self._separate:
            _check_user_of_executions()
        self._lock = Lock(shared=True)
        self._shown = (*SYSTEM, *SYSTEM_SETTINGS, *interpreter_folders())
        super().__init__(limits, execution_users() if self._separate else ())

    def enter(self, workspace: int, cpu_seconds: int) -> None:
        """Become a warden, whose child returns from here, shut in with one workspace."""
        server = os.getppid()
        os.setsid()
        temporary = self.renew_temporary(workspace)
        os.chdir(self._path(workspace))
        if self._separate:
            become(self.user_of(workspace))
        beside = tasks_of(os.geteuid())
        _become_warden(server)
        limit_resources(self._limits, cpu_seconds, beside=beside)
        os.environ.update(TMPDIR=temporary, HOME=temporary, MPLCONFIGDIR=temporary)
        tempfile.tempdir = None  # where it was looked up before
        domain = Domain(files=True)
        for path in self._shown:
            domain.allow(os.path.realpath(path), _READ)
        for name in (*_FACTS, *(f"self/{fact}" for fact in (*_OWN_FACTS, *_OWN_MEMORY))):
            domain.allow(f"/proc/{name}", _READ)
        for path in _DEVICES:
            domain.allow(path, _READ_FILE | _WRITE_FILE)
        for path in (".", temporary):
            domain.allow(path, _OWN)
        domain.enter()
        self._lock.close()

    def kill(self, pid: int, pidfd: int) -> None:
        del pid
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)  # to the warden, which ends the others first

    def exit_code(self, status: int) -> int:
        return os.waitstatus_to_exitcode(status)


def _become_warden(server: int) -> None:
    """Returns in the child only: the warden ends as the child did, after all that the child left behind."""
    Domain(files=False).enter()
    _check_that_signals_stay_inside(server)
    sys_.prctl(sys_.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _end_all)
    sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:
        os._exit(1)
    child = os.fork()
    if child:
        _watch(child)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check_that_signals_stay_inside(server: int) -> None:
    """`_end_all` must never be called where it would reach further than the domain."""
    try:
        os.kill(server, 0)
    except PermissionError:
        return
    raise OSError(errno.EPERM, "Landlock does not keep signals inside its domain here")


def _watch(child: int) -> NoReturn:
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    status = None
    while status is None:
        pid, ended = os.waitpid(-1, 0)
        if pid == child:
            status = ended
    _end_all()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _end_all(signal_number: int = 0, frame: FrameType | None = None) -> None:
    """Kill every process that this one may signal, itself excepted: those of its domain."""
    del signal_number, frame
    with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
        os.kill(-1, signal.SIGKILL)


def _check_user_of_executions() -> None:
    if not has_capabilities(CAP_SETUID, CAP_SETGID):
        raise OSError(errno.EPERM, "root without the capabilities SETUID and SETGID")
    change = f"import os; os.setgroups([]); os.setresgid(*[{EXECUTION_ID}] * 3); os.setresuid(*[{EXECUTION_ID}] * 3)"
    trial = [sys.executable, "-I", "-B", "-c", f"{change}; import wave"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False, cwd="/")
    if tried.returncode:
        where = ", ".join(interpreter_folders()) or sys.prefix
        raise OSError(
            errno.EACCES,
            f"the user that executions become ({EXECUTION_ID}) cannot read the interpreter in {where}; "
            "use one that all users may read, or start mappa as the user it belongs to",
        )


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock, {what}: {os.strerror(number)}")
    return int(result)
