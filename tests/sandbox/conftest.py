"""A laboratory: one sandbox per tier for all tests, with secrets planted around it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import secrets
import shutil
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from mappa.config import SandboxConfig
from mappa.sandbox import Sandbox, SandboxWorkspace
from mappa.types import ExecutionResult

T = TypeVar("T")

SECRET = secrets.token_hex(16)
CONFIG = SandboxConfig(
    timeout=60.0, memory_mb=1024, file_mb=64, workspace_mb=96, workspace_files=500, processes=40, output_limit_mb=8
)


class Lab:
    """A sandbox with an event loop of its own, used from plain test functions."""

    def __init__(self, config: SandboxConfig) -> None:
        self._runner = asyncio.Runner()
        self._opened = Sandbox.open(config, patience=60.0)  # a machine where much else runs is not a server that hangs
        self.sandbox = self.wait(self._opened.__aenter__())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        """Execute in a workspace that exists for this once."""
        with self.workspace() as workspace:
            return self.run_in(workspace, code, timeout=timeout)

    def run_in(self, workspace: SandboxWorkspace, code: str, *, timeout: float | None = None) -> ExecutionResult:
        return self.wait(workspace.run(textwrap.dedent(code), timeout=timeout))

    def output(self, code: str, *, timeout: float | None = None) -> str:
        """What code that must succeed prints."""
        result = self.run(code, timeout=timeout)
        assert result.outcome == "ok", (result.outcome, result.stdout, result.stderr)
        return result.stdout

    def literal(self, code: str) -> object:
        """The literal that `code` prints."""
        return ast.literal_eval(self.output(code))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[SandboxWorkspace]:
        workspace = self.wait(self.sandbox.workspace())
        try:
            yield workspace
        finally:
            workspace.close()

    @property
    def tier(self) -> str:
        return str(self.sandbox.report.tier)

    def close(self) -> None:
        self.wait(self._opened.__aexit__(None, None, None))
        self._runner.close()


def descendants(root: int) -> set[int]:
    """Pids of all processes below `root`, zombies left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found - {root}


def eventually(check: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it comes true. A slow disk takes many seconds to remove what a test has made."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


async def begun(workspace: SandboxWorkspace, seconds: float = 30.0) -> None:
    """Until the model's code has written the file `begun`."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(FileNotFoundError):
                workspace.read("begun")
                return
            await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
def open_lab() -> Iterator[Callable[..., Lab]]:
    """Make labs, each of its settings once. The secret is in this process's environment before any starts."""
    os.environ["MAPPA_TEST_SECRET"] = SECRET
    labs: dict[SandboxConfig, Lab] = {}

    def get(config: SandboxConfig = CONFIG) -> Lab:
        if config not in labs:
            labs[config] = Lab(config)
        return labs[config]

    yield get
    for made in labs.values():
        made.close()
    del os.environ["MAPPA_TEST_SECRET"]


@pytest.fixture
def lab(open_lab: Callable[..., Lab]) -> Lab:
    """The fork server. A machine that cannot have it fails here; it is never skipped."""
    made = open_lab()
    assert made.sandbox.report.tier == "fork-server", made.sandbox.report.describe()
    return made


# Landlock shares the machine's users and files, so its tests run as another user: test_tiers.py starts them.
TIERS = os.environ.get("MAPPA_TEST_TIERS", "fork-server bubblewrap").split()
NO_BUBBLEWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


def on_tiers(*names: str) -> list[Any]:
    """Parameters for a test or fixture: those of the tiers under test."""
    marks = {"bubblewrap": [NO_BUBBLEWRAP]}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.fixture(params=on_tiers(*TIERS))
def any_lab(request: pytest.FixtureRequest, open_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """Each tier that isolates; whatever the test ran is gone at its end."""
    made = open_lab(_with_tier(request.param))
    assert made.tier == request.param, made.sandbox.report.describe()
    before = descendants(os.getpid())
    yield made
    assert eventually(lambda: descendants(os.getpid()) <= before), "processes were left behind"


def _with_tier(tier: str) -> SandboxConfig:
    return CONFIG if tier == "fork-server" else msgspec.structs.replace(CONFIG, tier=tier)
