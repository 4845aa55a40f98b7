"""How model-written code may break out: signals, daemons, system calls, set-uid programs, on every tier."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import textwrap
from pathlib import Path

import pytest

from tests.sandbox.conftest import TIERS, Lab, begun, descendants

SYSTEM_CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return "succeeded" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


def test_killing_everything_in_sight(any_lab: Lab) -> None:
    code = """
        import os, signal
        for pid in (os.getppid(), -1, 1, 2, 3):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    """
    assert any_lab.run(code).outcome in ("ok", "killed")
    assert any_lab.output("print('alive')") == "alive\n"
    assert any_lab.sandbox.restarts == 0


def test_killing_and_throttling_siblings_and_the_trainer(any_lab: Lab) -> None:
    code = f"""
        import os, resource, signal
        reached = []
        for pid in ({os.getpid()}, {os.getppid()}, os.getppid(), *range(os.getpid() - 60, os.getpid() + 60)):
            if pid <= 1 or pid == os.getpid():
                continue
            for attempt in (
                lambda: os.kill(pid, signal.SIGKILL),
                lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL),
                lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
                lambda: os.sched_setaffinity(pid, {{0}}),
                lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
            ):
                try:
                    attempt()
                    reached.append(pid)
                except OSError:
                    pass
        print(reached)
    """

    async def both() -> tuple[str, str]:
        one, other = await any_lab.sandbox.workspace(), await any_lab.sandbox.workspace()
        results = await asyncio.gather(
            one.run("import time; time.sleep(1.5); print('alive')"), other.run(textwrap.dedent(code))
        )
        one.close()
        other.close()
        return results[0].stdout, results[1].stdout

    assert any_lab.wait(both()) == ("alive\n", "[]\n")
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 1


def test_daemons_do_not_survive(any_lab: Lab) -> None:
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
    """
    assert any_lab.run(code).outcome == "ok"  # the fixture looks for what is left


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ptrace", "call(101, 0, 0, 0, 0)"),
        ("process_vm_readv", "call(310, os.getpid(), 0, 0, 0, 0, 0)"),
        ("unshare user", "call(272, 0x10000000)"),
        ("unshare mount", "call(272, 0x20000)"),
        ("clone user", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
        ("setns", "call(308, os.open('/proc/self/ns/user', 0), 0)"),
        ("mount", "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)"),
        ("umount", "call(166, b'/proc', 2)"),
        ("chroot", "call(161, b'/tmp')"),
        ("open_tree", "call(428, -100, b'/', 1)"),
        ("fsopen", "call(430, b'tmpfs', 0)"),
        ("bpf", "call(321, 0, 0, 0)"),
        ("io_uring_setup", "call(425, 1, 0)"),
        ("keyctl", "call(250, 0, -3, 0)"),
        ("userfaultfd", "call(323, 0)"),
        ("perf_event_open", "call(298, 0, 0, -1, -1, 0)"),
        ("open_by_handle_at", "call(304, -100, 0, 0)"),
        ("personality", "call(135, 0x0040000)"),
        ("setgroups", "call(116, 0, 0)"),
        ("sethostname", "call(170, b'x', 1)"),
        ("reboot", "call(169, 0, 0, 0, 0)"),
        ("mknod device", "call(133, b'device', 0o20666, 0x101)"),
        ("x32 getpid", "call(0x40000000 + 39)"),
        ("clone3", "call(435, 0, 0)"),
        ("clone3 user", "call(435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)"),
        ("newer than the filter", "call(470, 0, 0)"),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_denied_system_calls(any_lab: Lab, name: str, call: str) -> None:
    told = any_lab.output(SYSTEM_CALLS + f"print({call})").strip()
    absent = ("clone3", "clone3 user", "x32 getpid", "newer than the filter")
    denied_by_landlock = any_lab.tier == "landlock" and name == "mknod device"
    assert told == ("ENOSYS" if name in absent else "EACCES" if denied_by_landlock else "EPERM")


def test_identity_of_an_execution(any_lab: Lab) -> None:
    code = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        wanted = ("Uid", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp")
        print({key: status[key].split() for key in wanted})
    """
    status = any_lab.literal(code)
    assert isinstance(status, dict)
    assert "0" not in status["Uid"]
    assert all(int(status[name][0], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"))
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody here is root")
@pytest.mark.skipif("fork-server" not in TIERS, reason="its server stays root")
def test_nothing_runs_as_root_of_the_host(lab: Lab) -> None:
    async def look() -> list[int]:
        workspace = await lab.sandbox.workspace()
        code = "import time; open('begun', 'w').close(); time.sleep(50)"
        running = asyncio.ensure_future(workspace.run(code))
        await begun(workspace)
        users = _users_of_servers_and_executions()
        workspace.close()
        await running
        return users

    users = lab.wait(look())
    assert len(users) >= 2
    assert 0 not in users


def _users_of_servers_and_executions() -> list[int]:
    below = [Path("/proc", str(pid)) for pid in descendants(os.getpid())]
    inside = [path for path in below if b"serve" in (path / "cmdline").read_bytes().split(b"\0")]
    return [int(re.findall(r"^Uid:\s+(\d+)", (path / "status").read_text(), re.M)[0]) for path in inside]


def test_set_uid_programs_gain_nothing(any_lab: Lab) -> None:
    code = """
        import subprocess
        done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print(done.returncode != 0 and "0" not in done.stdout)
    """
    assert any_lab.output(code) == "True\n"
