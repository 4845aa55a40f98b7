"""Workspaces as folders of the host."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import NoReturn

import pytest

from mappa.sandbox.server import folders
from mappa.sandbox.server.confine import Limits
from mappa.sandbox.server.folders import HostFolders
from tests.sandbox.conftest import eventually

# A server has one thread; the process of the tests may have more, of which newer Pythons warn.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

LIMITS = Limits(memory=1, file=1, workspace=1 << 20, files=100, processes=1)


def opened() -> tuple[HostFolders, Path]:
    """Folders with one workspace, number 1, that holds a file."""
    made = HostFolders(LIMITS)
    os.close(made.open_workspace(1))
    path = Path(str(made.folder), "1")
    (path / "file").write_text("x")
    return made, path


def test_nobody_waits_for_a_workspace_that_is_slow_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = opened()
    plain = folders.remove
    monkeypatch.setattr(folders, "remove", lambda top: (time.sleep(3), plain(top)))
    made.close_workspace(1)
    assert path.exists()
    assert eventually(lambda: not path.exists())
    monkeypatch.undo()
    made.close()
    assert not path.parent.exists()


def test_where_no_process_can_be_had_a_workspace_is_removed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> NoReturn:
        raise OSError(errno.EAGAIN, "no more processes")

    made, path = opened()
    monkeypatch.setattr(folders.os, "fork", full)
    made.close_workspace(1)
    assert not path.exists()
    monkeypatch.undo()
    made.close()
