"""Proof that the sandbox holds on this machine: start it, attack it from inside, say what was stopped."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from mappa.config import SandboxConfig
from mappa.sandbox.sandbox import Sandbox
from mappa.sandbox.tiers import NoTier, TierReport

# Each attack succeeds if it returns without an exception; `secret` is a file of the host that holds the word `mark`.
_ATTACKS = """
import ctypes, json, os, resource, socket, subprocess, sys

def read_a_file_of_the_host():
    assert mark in open(secret).read()

def read_the_password_file():
    open("/etc/shadow").read()

def find_the_trainer_in_proc():
    assert any(mark in open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdecimal())

def write_outside_the_workspace():
    for folder in ("/", "/usr", "/etc", "/run", "/dev", "/proc/sys/kernel"):
        try:
            open(f"{folder}/mappa-probe", "w").close()
        except OSError:
            continue
        return
    raise OSError("nowhere")

def open_a_network_socket():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)

def open_a_unix_socket():
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

def connect_through_a_subprocess():
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0

def processes_outside():  # those of a new namespace have the first numbers
    found = [pid for pid in (trainer, os.getppid()) if pid > 2]
    assert found
    return found

def signal_a_process_outside():
    for pid in processes_outside():
        os.kill(pid, 0)

def throttle_a_process_outside():
    for pid in processes_outside():
        resource.prlimit(pid, resource.RLIMIT_NICE, resource.prlimit(pid, resource.RLIMIT_NICE))

def read_the_trainers_environment():
    for pid in processes_outside():
        open(f"/proc/{pid}/environ").read()

def leave_the_memory_limit_behind():
    os.memfd_create("hoard")

def make_a_user_namespace():
    assert ctypes.CDLL(None).unshare(0x10000000) == 0

def mount_something():
    assert ctypes.CDLL(None).mount(b"x", b"/tmp", b"tmpfs", 0, None) == 0

def become_root():
    os.setuid(0)
    assert "CapEff:\\t0000000000000000" not in open("/proc/self/status").read()

def trace_a_process():
    assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0

stopped = {}
for attack in (
    read_a_file_of_the_host, read_the_password_file, find_the_trainer_in_proc, write_outside_the_workspace,
    open_a_network_socket, open_a_unix_socket, connect_through_a_subprocess,
    signal_a_process_outside, throttle_a_process_outside,
    read_the_trainers_environment, leave_the_memory_limit_behind, make_a_user_namespace, mount_something,
    become_root, trace_a_process,
):
    try:
        attack()
    except (OSError, AssertionError):
        stopped[attack.__name__.replace("_", " ")] = True
    else:
        stopped[attack.__name__.replace("_", " ")] = False
print(json.dumps(stopped))
"""


def probe(config: SandboxConfig | None = None) -> TierReport:
    """Start the sandbox, attack it, stop it. May be called anywhere; takes a second or two.

    Without a tier that works it returns a report with `tier=None`, and with `unsafe` one without attacks: they would
    hit the host. Other faults raise SandboxError.
    """
    config = msgspec.structs.replace(config or SandboxConfig(), preload=())
    with ThreadPoolExecutor(1, "sandbox-probe") as thread:  # the caller may be inside an event loop
        return thread.submit(_prove, config).result()


def _prove(config: SandboxConfig) -> TierReport:
    mark = f"mappa-probe-{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder, "secret")
        secret.write_text(mark)
        Path(folder).chmod(0o755)
        return asyncio.run(_attack(config, mark, secret))


async def _attack(config: SandboxConfig, mark: str, secret: Path) -> TierReport:
    try:
        async with Sandbox.open(config) as sandbox:
            if sandbox.report.tier == "unsafe":
                return sandbox.report
            workspace = await sandbox.workspace()
            facts = {"mark": mark, "secret": str(secret), "trainer": os.getpid()}
            result = await workspace.run(f"globals().update({facts!r})\n{_ATTACKS}")
    except NoTier as none:
        return none.report
    attacks = json.loads(result.stdout) if result.outcome == "ok" else {f"run at all ({result.outcome})": False}
    return msgspec.structs.replace(sandbox.report, attacks=attacks)
