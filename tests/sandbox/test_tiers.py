"""Which tier a machine gets, as root and as an ordinary user, and what it is told where there is none."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from mappa.config import SandboxConfig
from mappa.sandbox import Sandbox, UnsafeSandboxWarning, probe
from tests.sandbox.conftest import on_tiers
from tests.sandbox.elsewhere import REPOSITORY, USER, run_elsewhere

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
        config = SandboxConfig(unsafe=True, preload=(), timeout=30.0)
        async with Sandbox.open(config) as sandbox:
            assert sandbox.report.tier == "unsafe"
            workspace = await sandbox.workspace()
            workspace.put("in.txt", b"1")
            result = await workspace.run(
                "import os, time; print(open('in.txt').read())\n"
                "os.fork() or time.sleep(60); open('out.txt', 'w').write('2')"
            )
            assert (result.outcome, result.created) == ("ok", {"out.txt": 1})
            assert (await workspace.run("while True: pass", timeout=0.3)).outcome == "timeout"
            assert (await workspace.run("1/0")).exception == "ZeroDivisionError: division by zero"
            return Path((await workspace.run("import os; print(os.getcwd())")).stdout.strip()).parent

    with pytest.warns(UnsafeSandboxWarning, match="NO ISOLATION"):
        place = asyncio.run(main())
    assert place.parent == Path("/tmp")
    assert not place.exists()


@pytest.mark.filterwarnings("ignore::mappa.sandbox.UnsafeSandboxWarning")
def test_a_folder_deeper_than_any_stack_ends_its_own_execution_alone() -> None:
    deep = "import os, time\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')\ntime.sleep(5)"

    async def main() -> tuple[Path, int]:
        async with Sandbox.open(SandboxConfig(unsafe=True, preload=(), parallel=2)) as sandbox:
            workspace, other = await sandbox.workspace(), await sandbox.workspace()
            beside = asyncio.create_task(other.run("import os, time; time.sleep(2); print(os.getcwd())"))
            assert (await workspace.run(deep)).outcome == "disk-limit"
            workspace.close()
            return Path((await beside).stdout.strip()).parent, sandbox.restarts

    place, restarts = asyncio.run(main())
    assert restarts == 0
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


@needs_root
@pytest.mark.parametrize("tier", on_tiers("fork-server", "bubblewrap", "landlock"))
def test_an_ordinary_user_is_isolated_too(tier: str) -> None:
    told = run_elsewhere("-c", PROBE, tier)
    assert told.stdout.splitlines()[:1] == [f"{tier} True"], (told.stdout, told.stderr)


@needs_root
def test_an_ordinary_user_can_work() -> None:
    told = run_elsewhere("-c", PROGRAM)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines() == [
        "1000 12",
        "ok {'deep/in.txt': 3} {'deep/in.txt': 3} b'123'",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
        "memory",
    ]


FORBID_NAMESPACES = [
    "unshare",
    "-Ur",
    "sh",
    "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"',
    "sh",
]
HIDE_BUBBLEWRAP = "mount --bind /dev/null $(command -v bwrap)"
NO_LANDLOCK = """
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *line) for line in code)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(len(code), program))) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs a program as on a kernel without Landlock."""


@needs_root
@needs_bubblewrap
def test_without_namespaces_an_ordinary_user_gets_landlock_and_is_told_why() -> None:
    told = run_elsewhere("-c", PROBE, "auto", before=HIDE_BUBBLEWRAP, through=FORBID_NAMESPACES)
    assert told.stdout.splitlines()[:1] == ["landlock True"], (told.stdout, told.stderr)
    assert "user.max_user_namespaces=0" in told.stdout
    assert "apt-get install bubblewrap" in told.stdout


@needs_root
@needs_bubblewrap
def test_where_nothing_isolates_nothing_runs_and_the_user_is_told_why() -> None:
    told = run_elsewhere("-c", NO_LANDLOCK, "-c", PROBE, "auto", before=HIDE_BUBBLEWRAP, through=FORBID_NAMESPACES)
    lines = told.stdout.splitlines()
    assert lines[:1] == ["None False"], (told.stdout, told.stderr)
    assert "sandbox: none: nothing will run" in lines
    assert any("user.max_user_namespaces=0" in line for line in lines)
    assert any("Linux 6.12" in line for line in lines)
    assert any("apt-get install bubblewrap" in line for line in lines)


@needs_root
def test_a_masked_proc_is_named() -> None:
    """As in Docker: something is mounted over a part of /proc, so that a new one may not be mounted."""
    told = run_elsewhere("-c", PROBE, "fork-server", before="mount -t tmpfs tmpfs /proc/bus")
    assert told.stdout.splitlines()[:1] == ["None False"], (told.stdout, told.stderr)
    assert "/proc/bus" in told.stdout
    assert "systempaths=unconfined" in told.stdout


SUITE = [
    *(f"tests/sandbox/test_attacks_{kind}.py" for kind in ("resources", "reach", "escape", "traps")),
    *(
        f"tests/sandbox/test_lifecycle.py::test_{name}"
        for name in ("server_killed_once_the_execution_is_tried_again", "trainer_killed_takes_everything_along")
    ),
    *(
        f"tests/sandbox/test_programs.py::test_{name}"
        for name in (
            "threads_and_processes",
            "multiprocessing",
            "joblib_runs_one_after_the_other_on_landlock",
            "a_figure_is_drawn_to_a_file",
            "fifty_megabytes_in_and_out",
            "files_created_changed_and_deleted",
        )
    ),
]
"""What does not depend on who starts it."""


@needs_root
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("tier", "user"),
    [
        ("landlock", USER),
        pytest.param("landlock", None, marks=pytest.mark.slow),
        pytest.param("fork-server", USER, marks=pytest.mark.slow),
        pytest.param("bubblewrap", USER, marks=[pytest.mark.slow, needs_bubblewrap]),
    ],
)
def test_the_attacks_are_stopped_elsewhere_too(tier: str, user: int | None) -> None:
    """Landlock, which other tests leave out; and each tier where an ordinary user starts it."""
    told = run_elsewhere(
        *["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITE],
        user=user,
        environment={"MAPPA_TEST_TIERS": tier, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=str(REPOSITORY),
        timeout=590,
    )
    assert told.returncode == 0, told.stdout[-5000:] + told.stderr[-2000:]
