"""Task folders of a user's own: what is read from a good one, and what each bad one is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mappa.errors import TaskError
from mappa.tasks import prepare

TRAIN, TEST, ANSWERS = "public/train.csv", "public/test.csv", "private/answers.csv"


def change_csv(folder: Path, name: str, **columns: Any) -> None:
    frame = pd.read_csv(folder / name)
    frame.assign(**columns).to_csv(folder / name, index=False)


def drop_column(folder: Path, name: str, column: str) -> None:
    pd.read_csv(folder / name).drop(columns=column).to_csv(folder / name, index=False)


def change_json(folder: Path, **values: Any) -> None:
    spec = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(spec | values))


def test_reads_a_folder_of_ones_own(source: Path, tmp_path: Path) -> None:
    tasks = prepare(str(source), tmp_path / "unused")
    (task,) = tasks.train
    assert (task.id, task.kind, task.target, task.id_column) == ("shop", "regression", "price", "id")
    assert task.prompt == "Target: price (regression). Text columns: color. Missing values: yes."
    assert task.facts == {"text_columns": "color", "missing": True, "rows": 6}
    assert task.metric is not None
    assert task.metric.baseline == 8.2
    assert [task.id for task in tasks.heldout] == ["stall"]
    assert not (tmp_path / "unused").exists()


BAD = {
    "no answers": (lambda f: (f / ANSWERS).unlink(), r"task shop: private/answers.csv is missing"),
    "no task.json": (lambda f: (f / "task.json").unlink(), r"task shop: no task.json"),
    "half a task.json": (lambda f: (f / "task.json").write_text('{"kind": '), r"task.json cannot be used"),
    "unknown key": (lambda f: change_json(f, color="red"), r"unknown field `color`"),
    "wrong type": (lambda f: change_json(f, target=3), r"Expected `str`, got `int` - at `\$.target`"),
    "unknown kind": (lambda f: change_json(f, kind="ranking"), r"'ranking'"),
    "kind and metric": (lambda f: change_json(f, kind="classification"), r"measured by 'accuracy'"),
    "reference no better": (
        lambda f: change_json(f, metric={"name": "rmse", "greater_is_better": False, "baseline": 2, "reference": 2}),
        r"no better than the baseline",
    ),
    "wrong direction": (
        lambda f: change_json(f, metric={"name": "rmse", "greater_is_better": True, "baseline": 2, "reference": 3}),
        r"greater_is_better: false",
    ),
    "facts that lie": (
        lambda f: change_json(f, facts={"text_columns": "none", "missing": True, "rows": 6}),
        r"do not fit the tables \(text_columns\).*'color'",
    ),
    "no target": (lambda f: drop_column(f, TRAIN, "price"), r"train.csv has no target column 'price'"),
    "target in test": (lambda f: change_csv(f, TEST, price=1), r"gives the target 'price' away"),
    "other columns in test": (lambda f: drop_column(f, TEST, "size"), r"test.csv must have train.csv's columns"),
    "id not first": (
        lambda f: (f / TRAIN).write_text("size,id,color,price\n1,1,r,2\n"),
        r"must begin with the id column 'id', not 'size'",
    ),
    "id twice": (lambda f: change_csv(f, TRAIN, id=[1, 2, 3, 4, 5, 5]), r"train.csv: id 5 is there twice"),
    "id missing": (lambda f: change_csv(f, TEST, id=[7, None, 9]), r"must be whole numbers"),
    "ids of other rows": (
        lambda f: change_csv(f, ANSWERS, id=[7, 8, 10]),
        r"exactly test.csv's ids; 2 differ, the first is 9",
    ),
    "answers of other columns": (
        lambda f: drop_column(f, ANSWERS, "price"),
        r"must have the columns id, price, not id",
    ),
    "infinite answer": (lambda f: change_csv(f, ANSWERS, price=[1, "inf", 2]), r"rmse: answers .* finite numbers"),
    "task.json of bytes": (lambda f: (f / "task.json").write_bytes(b"\xff\xfe"), r"task.json cannot be used"),
    "empty answer": (lambda f: change_csv(f, ANSWERS, price=[1, None, 2]), r"answers.csv: 1 rows have no 'price'"),
    "words for numbers": (lambda f: change_csv(f, ANSWERS, price=list("abc")), r"must be numbers"),
    "empty table": (lambda f: (f / TEST).write_text(""), r"public/test.csv is not a CSV table"),
    "no rows": (lambda f: (f / TRAIN).write_text("id,size,color,price\n"), r"public/train.csv has no rows"),
    "a gigabyte": (lambda f: os.truncate(f / TRAIN, 1 << 30), r"train.csv has 1024 MiB; a table may have 512"),
    "not text": (lambda f: (f / TRAIN).write_bytes(b"id,size\n\xff\xfe,\xff\n"), r"train.csv is not a CSV table"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_a_bad_folder(case: str, source: Path, tmp_path: Path) -> None:
    spoil, message = BAD[case]
    spoil(source / "train" / "shop")  # type: ignore[no-untyped-call]
    with pytest.raises(TaskError, match=message):
        prepare(str(source), tmp_path)


def test_refuses_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no task folder at .*nowhere.*quickstart"):
        prepare(str(tmp_path / "nowhere"), tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(TaskError, match=r"no task folders in train/"):
        prepare(str(tmp_path), tmp_path)


def test_refuses_a_task_in_both_splits(source: Path, tmp_path: Path) -> None:
    (source / "heldout" / "stall").rename(source / "heldout" / "shop")
    with pytest.raises(TaskError, match=r"shop in both"):
        prepare(str(source), tmp_path)
