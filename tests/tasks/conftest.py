"""Small task folders, and one full quickstart shared by every test of the session."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pandas as pd
import pytest

from mappa.tasks import TaskSet, prepare
from mappa.tasks.folder import TaskFile
from mappa.types import Metric

from .workspace import FolderWorkspace, Workspaces


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def quickstart(cache: Path) -> TaskSet:
    return prepare("quickstart", cache)


def write_task(folder: Path, *, first_test_id: int = 7) -> Path:
    """A correct task folder of six training and three test rows, for a test to spoil."""
    (folder / "public").mkdir(parents=True)
    (folder / "private").mkdir()
    train = pd.DataFrame(
        {"id": range(1, 7), "size": [1.0, 2, 3, 4, 5, 6], "color": list("rrggbb"), "price": range(10, 70, 10)}
    )
    test_ids = range(first_test_id, first_test_id + 3)
    test = pd.DataFrame({"id": test_ids, "size": [2.5, None, 4.5], "color": list("rgb")})
    answers = pd.DataFrame({"id": test_ids, "price": [25.0, 35.0, 45.0]})
    train.to_csv(folder / "public/train.csv", index=False)
    test.to_csv(folder / "public/test.csv", index=False)
    answers.assign(price=35.0).to_csv(folder / "public/sample_submission.csv", index=False)
    answers.to_csv(folder / "private/answers.csv", index=False)
    metric = Metric(name="rmse", greater_is_better=False, baseline=8.2, reference=2.0)
    (folder / "task.json").write_bytes(msgspec.json.encode(TaskFile(kind="regression", target="price", metric=metric)))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder with one task in each split."""
    write_task(tmp_path / "train" / "shop")
    write_task(tmp_path / "heldout" / "stall")
    return tmp_path


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(tmp_path / "episode")
