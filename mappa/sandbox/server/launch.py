"""From an ordinary process to a sealed one: namespaces, a private root, and the interpreter executed anew inside.

Three processes come of it. The guard stays outside and ends everything when the trainer dies. The keeper is the
first process of the new pid namespace and only waits. The server, in namespaces within those, does the work:

    trainer -> guard | keeper (mounts made here) | server (another user: those mounts are locked) | executions

As root, the mounts are made with root's own powers and the server becomes an unprivileged user of the host;
executions become yet another one. As an ordinary user all of them remain that user on the host, in user namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from . import syscalls as sys_
from .cgroup import claim
from .syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, mount, unshare

SERVER_ID, EXECUTION_ID = 65533, 65534
"""Users of the host (and groups) that the server and the executions become where root starts them."""
_UNASSIGNED, _USERS = 0x70000000, 1 << 13
"""Numbers that no distribution gives to users or containers, and how many of them one server takes."""

WORKSPACES = "/workspaces"
WORKSPACE = "/sandbox"
SERVER_CODE = "/run/server"
_BASE = "/tmp"  # any directory that exists everywhere: the private root is built on it, then becomes /
_OLD = "/old"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
SYSTEM_SETTINGS = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/etc/fonts", "/sys/devices/system/cpu")
_DEVICES = ("null", "zero", "full", "random", "urandom")
CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21
_PASSWD = "root:x:0:0::/:/bin/sh\nagent:x:1000:1000::/tmp:/bin/sh\n"
_GROUP = "root:x:0:\nagent:x:1000:\n"


@dataclass(frozen=True)
class Identity:
    """Who the trainer is, and whether executions can be given users of their own."""

    uid: int
    gid: int
    separate: bool

    @property
    def outer_ids(self) -> list[int]:
        """Ids outside the server's namespace that are 0, 1, ... inside."""
        return [SERVER_ID, EXECUTION_ID] if self.separate else [0]


def launch(trainer: int, command: list[str], environment: dict[str, str], *, cgroup: str = "") -> NoReturn:
    """Become the guard; run `command` as the server. `trainer` is a pidfd; descriptor 0 is the control socket;
    `cgroup` a folder delegated to us, or empty.

    `command` gets one more argument, JSON: which in-namespace id executions take, the paths that their own /tmp and
    /dev/shm would hide, and a descriptor of the cgroup. What fails is reported over the control socket.
    """
    try:
        identity = _identity()
        groups = claim(cgroup, SERVER_ID if identity.separate else None) if cgroup else None
        unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWPID | (0 if identity.separate else sys_.CLONE_NEWUSER), "namespaces")
        if not identity.separate:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"0 {identity.uid} 1")
            _write("/proc/self/gid_map", f"0 {identity.gid} 1")
        keeper = os.fork()
        if keeper:
            _guard(trainer, keeper)
        os.close(trainer)
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        overlaid = _build_root()
        facts = {"execution_id": int(identity.separate), "overlaid": overlaid, "groups": groups}
        if groups is not None:
            os.set_inheritable(groups, True)
        _become_server(identity, [*command, json.dumps(facts)], environment)
    except OSError as error:
        _report(error)
        os._exit(1)


def _identity() -> Identity:
    uid, gid = os.getuid(), os.getgid()
    if uid != 0:
        return Identity(uid, gid, separate=False)
    separate = are_mapped(SERVER_ID, EXECUTION_ID) and has_capabilities(CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID)
    if not separate and _is_real_root():
        raise OSError(errno.EPERM, "root without the capabilities SYS_ADMIN, SETUID and SETGID")
    return Identity(uid, gid, separate)


def execution_users() -> range:
    """Whom root lets executions become on the host: another user in each workspace, so that what the kernel counts per
    user, processes above all, is nobody else's. One for all where a container has no numbers for them."""
    first = _UNASSIGNED + os.getpid() % (1 << 14) * _USERS
    if are_mapped(first, first + _USERS - 1):
        return range(first, first + _USERS)
    return range(EXECUTION_ID, EXECUTION_ID + 1)


def are_mapped(*numbers: int) -> bool:
    """Whether these users and groups exist in this user namespace."""
    maps = _id_map("uid"), _id_map("gid")
    return all(any(first <= number < first + count for first, _, count in ids) for ids in maps for number in numbers)


def _is_real_root() -> bool:
    return any(first == outer == 0 for first, outer, _ in _id_map("uid"))


def _id_map(kind: str) -> list[tuple[int, int, int]]:
    with open(f"/proc/self/{kind}_map") as file:
        return [(int(first), int(outer), int(count)) for first, outer, count in map(str.split, file)]


def has_capabilities(*numbers: int) -> bool:
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return all(held >> number & 1 for number in numbers)


def _guard(trainer: int, keeper: int) -> NoReturn:
    """Live as long as both trainer and keeper do. The keeper is killed by the kernel when this process ends."""
    os.close(0)
    poll = select.poll()
    for descriptor in (trainer, os.pidfd_open(keeper)):
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    os._exit(0)


def _build_root() -> list[str]:
    """Make a private root and move into it. Returns the visible paths that lie under /tmp or /dev/shm."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    prefixes = interpreter_folders()
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    shown = {path: os.path.realpath(path) for path in (*SYSTEM, *SYSTEM_SETTINGS, *prefixes) if path not in links}
    shown[SERVER_CODE] = os.path.dirname(os.path.realpath(__file__))
    mount("root", _BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=4m")
    os.mkdir(_BASE + _OLD)
    sys_.pivot_root(_BASE, _BASE + _OLD)
    os.chdir("/")
    for path, target in links.items():
        os.symlink(target, path)
    for path, source in shown.items():
        _show(_OLD + source, path)
    for path in (WORKSPACES, WORKSPACE, "/dev/shm", "/proc", "/tmp", "/etc"):
        os.makedirs(path, exist_ok=True)
    _make_devices()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _write("/etc/passwd", _PASSWD)
    _write("/etc/group", _GROUP)
    sys_.umount(_OLD)
    os.rmdir(_OLD)
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    return [path for path in prefixes if path.startswith(("/tmp/", "/dev/shm/"))]


def interpreter_folders() -> list[str]:
    """Where this interpreter, its environment and its base live, without those inside /usr or another one."""
    found = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    found |= {os.path.realpath(path) for path in found}
    folders = [path for path in found if path not in ("/usr", "/") and not path.startswith("/usr/")]
    for path in folders:
        if path == WORKSPACE or path.startswith(WORKSPACE + "/"):
            raise OSError(errno.EEXIST, f"the interpreter's folder {path} lies where executions have their workspace")
    return sorted(path for path in folders if not any(path.startswith(other + "/") for other in folders))


def _show(source: str, target: str) -> None:
    """Make `source`, if it exists, visible read-only at `target`."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif os.path.exists(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _write(target, "")
    else:
        return
    mount(source, target, None, MS_BIND | MS_REC)
    sys_.make_read_only(target)


def _make_devices() -> None:
    for name in _DEVICES:
        _write(f"/dev/{name}", "")
        mount(f"{_OLD}/dev/{name}", f"/dev/{name}", None, MS_BIND)
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")


def _become_server(identity: Identity, command: list[str], environment: dict[str, str]) -> NoReturn:
    """Enter a nested user namespace with all else new too, and execute `command` as its first process and root."""
    flags = sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS | sys_.CLONE_NEWPID
    flags |= sys_.CLONE_NEWNET | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS
    with _mapped_to(identity.outer_ids):
        unshare(flags, "user namespace")
    if identity.separate:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    socket.sethostname("sandbox")
    server = os.fork()
    if server:
        os.close(0)
        _, status = os.waitpid(server, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.execve(command[0], command, environment)


@contextlib.contextmanager
def _mapped_to(outer_ids: list[int]) -> Iterator[None]:
    """The body enters a new user namespace; a helper that stays outside of it then writes its id maps."""
    lines = "".join(f"{inner} {outer} 1\n" for inner, outer in enumerate(outer_ids))
    me = os.getpid()
    go, ready = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready)
        if os.read(go, 1):
            _write_maps(me, lines)
        os._exit(0)
    os.close(go)
    yield
    os.write(ready, b"1")
    os.close(ready)
    _, status = os.waitpid(helper, 0)
    if status:
        os._exit(1)  # the helper has told why


def _write_maps(pid: int, lines: str) -> None:
    try:
        for kind in ("uid", "gid"):
            _write(f"/proc/{pid}/{kind}_map", lines)
    except OSError as error:
        _report(error)
        os._exit(1)


def _report(error: OSError) -> None:
    message = {"op": "failed", "error": error.strerror or str(error), "errno": error.errno}
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(0)) as control:  # if somebody still listens
        control.send(json.dumps(message).encode())


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
