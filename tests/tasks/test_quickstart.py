"""The quickstart's tasks, built from the real package, and the cache they live in."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pandas as pd
import pytest

from mappa.errors import DiskError, TaskError
from mappa.tasks import TaskSet, populate, prepare, repair
from mappa.tasks.catalogue import HELDOUT, TRAIN
from mappa.tasks.quickstart import MAX_ROWS
from mappa.tasks.store import open_or_build, verify

from .workspace import FolderWorkspace


def test_is_a_balanced_mix(quickstart: TaskSet) -> None:
    assert len(quickstart.train) == 16
    assert len(quickstart.heldout) == 10
    for tasks in quickstart.train, quickstart.heldout:
        assert sum(task.kind == "regression" for task in tasks) == len(tasks) / 2
        assert len(tasks) / 3 < sum(task.facts["text_columns"] != "none" for task in tasks) < len(tasks)
        assert 2 < sum(bool(task.facts["missing"]) for task in tasks) < len(tasks) / 2


def test_no_heldout_target_is_a_training_target() -> None:
    assert not {table.target for table in HELDOUT} & {table.target for table in TRAIN}
    assert not {table.dataset for table in HELDOUT} & {table.dataset for table in TRAIN}


def test_the_reference_is_clearly_better_than_the_baseline(quickstart: TaskSet) -> None:
    for task in quickstart.train + quickstart.heldout:
        metric = task.metric
        assert metric is not None
        if metric.greater_is_better:
            assert metric.reference >= metric.baseline + 0.08, task.id
        else:
            assert metric.reference <= 0.9 * metric.baseline, task.id


def test_tables_are_small_and_ids_say_nothing(quickstart: TaskSet) -> None:
    for task in quickstart.train + quickstart.heldout:
        train = pd.read_csv(f"{task.folder}/public/train.csv")
        test = pd.read_csv(f"{task.folder}/public/test.csv")
        assert len(train) + len(test) <= MAX_ROWS
        assert train.shape[1] <= 25
        assert abs(len(test) / (len(train) + len(test)) - 0.25) < 0.01
        assert list(train["id"]) == list(range(1, len(train) + 1))
        assert list(test["id"]) == list(range(len(train) + 1, len(train) + len(test) + 1))
        assert task.facts["rows"] == len(train)


def test_reads_as_the_role_reads_it(quickstart: TaskSet) -> None:
    prompts = {task.id: task.prompt for task in quickstart.train}
    assert prompts["Boston"] == "Target: medv (regression). Text columns: none. Missing values: no."
    assert prompts["penguins"] == "Target: species (classification). Text columns: island, sex. Missing values: yes."
    (boston,) = (task for task in quickstart.train if task.id == "Boston")
    description = Path(boston.folder, "public/description.md").read_text()
    assert "Predict `medv` (regression)" in description
    assert "| crim | numbers from" in description


def test_populate_shows_nothing_private(quickstart: TaskSet, tmp_path: Path) -> None:
    workspace = FolderWorkspace(tmp_path)
    populate(quickstart.train[0], workspace)
    assert sorted(workspace.files()) == ["sample_submission.csv", "test.csv", "train.csv"]
    assert quickstart.train[0].target not in pd.read_csv(tmp_path / "test.csv").columns


def test_repair_puts_the_named_artefacts_only(quickstart: TaskSet, tmp_path: Path) -> None:
    workspace = FolderWorkspace(tmp_path)
    task = quickstart.train[0]
    assert repair(task, workspace, ("X_train.pkl", "y_train.pkl")) == ("X_train.pkl", "y_train.pkl")
    assert sorted(workspace.files()) == ["X_train.pkl", "y_train.pkl"]
    assert len(pd.read_pickle(tmp_path / "X_train.pkl")) == task.facts["rows"]


def test_a_repaired_model_comes_with_the_table_it_knows(quickstart: TaskSet, tmp_path: Path) -> None:
    workspace = FolderWorkspace(tmp_path)
    task = quickstart.train[0]
    workspace.put("X_test.pkl", b"with columns of the engineer's own")
    assert repair(task, workspace, ("model.pkl",)) == ("model.pkl", "X_test.pkl")
    model, table = (pd.read_pickle(tmp_path / name) for name in ("model.pkl", "X_test.pkl"))
    assert list(model.feature_names_in_) == list(table.columns)


def test_a_submission_is_never_put_right(quickstart: TaskSet, tmp_path: Path) -> None:
    workspace = FolderWorkspace(tmp_path)
    assert repair(quickstart.train[0], workspace, ("submission.csv",)) == ()
    assert not workspace.files()


def test_repair_says_when_a_task_has_no_reference(source: Path, tmp_path: Path) -> None:
    (task,) = prepare(str(source), tmp_path).train
    with pytest.raises(TaskError, match=r"task shop has no private/reference/model.pkl.*repair_upstream=false"):
        repair(task, FolderWorkspace(tmp_path), ("model.pkl",))


def test_the_cache_is_used_again(quickstart: TaskSet, cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert prepare("quickstart", cache) == quickstart
    assert before == {path: path.stat().st_mtime_ns for path in before}


def build_small(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "data.csv").write_text("id,price\n1,2\n")


def test_a_damaged_cache_is_named_and_refused(tmp_path: Path) -> None:
    folder = open_or_build(tmp_path / "small", build_small, megabytes=1)
    data = folder / "inner" / "data.csv"
    good = data.read_bytes()
    data.write_bytes(good[:-2])
    with pytest.raises(TaskError, match=rf"{data} has changed; delete {folder} and run again"):
        open_or_build(folder, build_small, megabytes=1)
    data.unlink()
    with pytest.raises(TaskError, match=r"data.csv is missing"):
        verify(folder)
    data.write_bytes(good)
    (folder / "extra").write_text("")
    with pytest.raises(TaskError, match=r"extra does not belong there"):
        verify(folder)
    (folder / "extra").unlink()
    verify(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(TaskError, match=r"no readable manifest.json"):
        verify(folder)


def test_an_interrupted_build_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        build_small(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path / "small", interrupted, megabytes=1)
    assert not (tmp_path / "small").exists()
    assert [path.name for path in open_or_build(tmp_path / "small", build_small, megabytes=1).iterdir()]
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"MiB free and the tasks need"):
        open_or_build(tmp_path / "small", build_small, megabytes=1 << 40)
    assert not list(tmp_path.glob("small*"))


def count_builds(folder: Path) -> None:
    build_small(folder)
    with open(folder.parent / "builds", "a") as log:
        log.write("x")


def open_counted(root: Path) -> None:
    open_or_build(root / "small", count_builds, megabytes=1)


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=open_counted, args=(tmp_path,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert (tmp_path / "builds").read_text() == "x"
