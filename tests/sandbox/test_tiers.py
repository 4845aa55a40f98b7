"""Which tier a machine gets, as root and as an ordinary user, and what it is told where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mappa.config import SandboxConfig
from mappa.sandbox import Sandbox, UnsafeSandboxWarning, probe

REPOSITORY = Path(__file__).parents[2]
USER = 12345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="already an ordinary user: the other tests show it")
needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def test_probe_proves_the_fork_server() -> None:
    report = probe()
    assert report.tier == "fork-server", report.describe()
    assert report.proven
    assert len(report.attacks) >= 10
    assert report.reasons == ()
    assert report.describe().startswith("sandbox: fork-server")


@needs_bubblewrap
def test_probe_proves_bubblewrap() -> None:
    report = probe(SandboxConfig(tier="bubblewrap"))
    assert report.tier == "bubblewrap", report.describe()
    assert report.proven


def test_probe_inside_an_event_loop() -> None:
    async def main() -> bool:
        return probe().proven

    assert asyncio.run(main())


def test_unsafe_is_loud_and_works() -> None:
    async def main() -> Path:
        config = SandboxConfig(unsafe=True, preload=(), timeout=5.0)
        async with Sandbox.open(config) as sandbox:
            assert sandbox.report.tier == "unsafe"
            workspace = await sandbox.workspace()
            workspace.put("in.txt", b"1")
            result = await workspace.run(
                "import os; print(open('in.txt').read()); os.fork(); open('out.txt', 'w').write('2')"
            )
            assert (result.outcome, result.created) == ("ok", {"out.txt": 1})
            assert (await workspace.run("while True: pass", timeout=0.3)).outcome == "timeout"
            assert (await workspace.run("1/0")).exception == "ZeroDivisionError: division by zero"
            return Path((await workspace.run("import os; print(os.getcwd())")).stdout.strip()).parent

    with pytest.warns(UnsafeSandboxWarning, match="NO ISOLATION"):
        place = asyncio.run(main())
    assert place.parent == Path("/tmp")
    assert not place.exists()


def test_probe_does_not_attack_what_is_not_isolated() -> None:
    with pytest.warns(UnsafeSandboxWarning):
        report = probe(SandboxConfig(unsafe=True))
    assert report.tier == "unsafe"
    assert not report.proven


PROBE = """
from mappa.config import SandboxConfig
from mappa.sandbox import probe
import sys
report = probe(SandboxConfig(tier=sys.argv[1]))
print(report.tier, report.proven)
print(report.describe())
"""

PROGRAM = """
import asyncio
from mappa.config import SandboxConfig
from mappa.sandbox import Sandbox
async def main():
    async with Sandbox.open(SandboxConfig(preload=("numpy",), memory_mb=1024, processes=20)) as sandbox:
        workspace = await sandbox.workspace()
        workspace.put("deep/in.txt", b"12")
        print((await workspace.run("import os; print(os.getuid(), open('deep/in.txt').read())")).stdout.strip())
        result = await workspace.run("open('deep/in.txt', 'a').write('3'); import os; os.chmod('.', 0)")
        print(result.outcome, result.changed, workspace.files(), workspace.read("deep/in.txt"))
        bomb = "import os, time\\nwhile True:\\n    if os.fork() == 0: time.sleep(9)"
        print((await workspace.run(bomb)).exception)
        print((await workspace.run("print(len(bytearray(4 << 30)))")).outcome)
asyncio.run(main())
"""


def _as_user(
    program: str, *arguments: str, before: str = ":", through: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program as an ordinary user who can read the interpreter, wherever it is installed.

    Where it lies below a folder that is root's alone, that folder is replaced, in a mount namespace, by one that
    holds nothing else.
    """
    needed = sorted({sys.prefix, sys.base_prefix, str(REPOSITORY)})
    shell = ["set -e"]
    shut = {str(parent) for path in needed for parent in Path(path).parents if not parent.stat().st_mode & 0o001}
    for number, folder in enumerate(sorted(shut)):
        below = [path for path in needed if path.startswith(folder + "/")]
        stash = [f"/mnt/stash-{number}-{index}" for index in range(len(below))]
        shell += ["mount -t tmpfs tmpfs /mnt"] if number == 0 else []
        shell += [f"mkdir {place} && mount --bind {path} {place}" for path, place in zip(below, stash, strict=True)]
        shell += [f"mount -t tmpfs -o mode=755 tmpfs {folder}"]
        shell += [f"mkdir -p {path} && mount --bind {place} {path}" for path, place in zip(below, stash, strict=True)]
    shell += [before, f'exec setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all "$@"']
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", "\n".join(shell), "sh", *through, sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "HOME": "/tmp"},
        cwd="/tmp",
    )


@needs_root
@pytest.mark.parametrize("tier", ["fork-server", pytest.param("bubblewrap", marks=needs_bubblewrap)])
def test_an_ordinary_user_is_isolated_too(tier: str) -> None:
    told = _as_user(PROBE, tier)
    assert told.stdout.splitlines()[:1] == [f"{tier} True"], (told.stdout, told.stderr)


@needs_root
def test_an_ordinary_user_can_work() -> None:
    told = _as_user(PROGRAM)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == [
        "1000 12",
        "ok {'deep/in.txt': 3} {'deep/in.txt': 3} b'123'",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
        "memory",
    ]


@needs_root
@needs_bubblewrap
def test_without_user_namespaces_an_ordinary_user_gets_nothing_and_is_told_why() -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    hide = "mount --bind /dev/null $(command -v bwrap)"
    told = _as_user(PROBE, "auto", before=hide, through=["unshare", "-Ur", "sh", "-c", forbid, "sh"])
    lines = told.stdout.splitlines()
    assert lines[:1] == ["None False"], (told.stdout, told.stderr)
    assert "sandbox: none: nothing will run" in lines
    assert any("user.max_user_namespaces=0" in line for line in lines)
    assert any("apt-get install bubblewrap" in line for line in lines)
