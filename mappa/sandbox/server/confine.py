"""What one execution may use and may not call. The last steps before the model's code runs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from dataclasses import asdict, dataclass

from .seccomp import Filter
from .syscalls import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl


@dataclass(frozen=True)
class Limits:
    """Bounds of one execution. Sizes in bytes; `processes` counts threads too."""

    memory: int
    file: int
    workspace: int
    files: int
    processes: int
    descriptors: int = 512

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Limits:
        return cls(**json.loads(text))


def limit_resources(limits: Limits, cpu_seconds: int, *, beside: int | None = 0) -> None:
    """Set the rlimits, soft and hard, and stand first in line when the machine's memory runs out.

    `beside`: processes that the kernel counts along, where executions share a user with others. None: no limit.
    """
    wanted = {
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_FSIZE: limits.file,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if beside is not None:
        wanted[resource.RLIMIT_NPROC] = beside + limits.processes
    for kind, value in wanted.items():
        lower_limit(kind, value)
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(descriptor, b"1000")
    os.close(descriptor)


def become(user: int) -> None:
    """Be another user for good, and a member of that user's group alone. For root."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    prctl(PR_SET_DUMPABLE, 1)  # the change of user made /proc/self unreadable


def tasks_of(user: int) -> int:
    """Processes and threads of a user; those that cannot be seen are none of that user's."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def lower_limit(kind: int, value: int) -> None:
    """Set an rlimit, soft and hard, to `value` or to what this process may have at most."""
    _, hard = resource.getrlimit(kind)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (allowed, allowed))


class Lock:
    """No capabilities, no way to gain any, and the system call filter. Irrevocable, inherited by all descendants."""

    def __init__(self, *, shared: bool = False) -> None:
        """`shared`: among the machine's other processes, with no namespaces of one's own."""
        self._filter = Filter(shared=shared)

    def close(self) -> None:
        drop_capabilities()
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        self._filter.install()
