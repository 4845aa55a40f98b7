"""The page over a real loopback socket, and a browser that looks at it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.view.browser import PROGRAM, Browser
from tests.view.journals import write_run

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "build" / "view"
"""Screenshots of the last test run."""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run. Nobody writes to it."""
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """`mappa view` as a person runs it; the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mappa.cli", "view", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine; run: make chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser
