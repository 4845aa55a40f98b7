"""A task folder: what is in it, and reading one strictly.

    Boston/task.json                        what is asked and how it is measured (`TaskFile`)
    Boston/public/description.md            the task in words, for people
    Boston/public/train.csv                 id, features and target
    Boston/public/test.csv                  id and features
    Boston/public/sample_submission.csv     id and target: the form of an answer
    Boston/private/answers.csv              id and target of the test rows
    Boston/private/reference/*.pkl          what a competent team would have left behind (see `repair`)

The id is the first column of every table: whole numbers or text, each once. A folder that breaks a rule is a TaskError
that names the task, the file and the fix; nothing is repaired in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NoReturn

import msgspec
import pandas as pd
from msgspec import Struct
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype, is_string_dtype

from mappa.errors import TaskError
from mappa.tasks.metrics import GREATER_IS_BETTER, METRICS_OF_KIND
from mappa.tasks.probes import grade
from mappa.types import Fact, Metric, Task

PUBLIC_FILES = ("train.csv", "test.csv", "sample_submission.csv")
ANSWERS = "private/answers.csv"
REFERENCE = "private/reference"
TABLE_MB = 512
"""A table is read into memory, and put into every episode's workspace."""


class TaskFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of task.json.

    `facts` may be left out: it is then worked out from the tables. Where it is given it must agree with them.

    >>> TaskFile(kind="regression", target="medv", metric=Metric(name="rmse", greater_is_better=False,
    ...          baseline=9.2, reference=3.4), facts={"text_columns": "none", "missing": False, "rows": 379})
    """

    kind: Literal["regression", "classification"]
    target: str
    metric: Metric
    id_column: str = "id"
    facts: dict[str, Fact] | None = None
    prompt: str = ""
    """The task in words, for the first role; empty: made of the facts."""
    as_published: bool = False
    """Tables as whoever published them made them: the id may stand anywhere, train.csv may have columns that test.csv
    lacks. What grading needs is checked all the same."""


class Tables(Struct, frozen=True, kw_only=True):
    """The four tables of a task folder, as read."""

    train: pd.DataFrame
    test: pd.DataFrame
    sample: pd.DataFrame
    answers: pd.DataFrame


def load_task(folder: Path) -> Task:
    """Read and check one task folder. Raises TaskError."""
    spec = _read_spec(folder)
    _check_metric(folder, spec)
    tables = Tables(
        train=_read_table(folder, "public/train.csv"),
        test=_read_table(folder, "public/test.csv"),
        sample=_read_table(folder, "public/sample_submission.csv"),
        answers=_read_table(folder, ANSWERS),
    )
    _check_columns(folder, spec, tables)
    _check_ids(folder, spec, tables)
    _check_targets(folder, spec, tables)
    facts = facts_of(tables.train, tables.test, target=spec.target, id_column=spec.id_column)
    if spec.facts is not None and spec.facts != facts:
        wrong = sorted(key for key in facts.keys() | spec.facts.keys() if facts.get(key) != spec.facts.get(key))
        _refuse(folder, f"task.json's facts do not fit the tables ({', '.join(wrong)}): it should say {facts}")
    return Task(
        id=folder.name,
        kind=spec.kind,
        prompt=spec.prompt or prompt_of(spec.target, spec.kind, facts),
        folder=str(folder.resolve()),
        target=spec.target,
        id_column=spec.id_column,
        metric=spec.metric,
        facts=facts,
    )


def facts_of(train: pd.DataFrame, test: pd.DataFrame, *, target: str, id_column: str) -> dict[str, Fact]:
    """What a role is told of the tables, measured on them as `pandas.read_csv` gives them.

    >>> facts_of(train, test, target="price", id_column="id")
    {"text_columns": "driveway, aircon", "missing": False, "rows": 409}
    """
    features = [name for name in test.columns if name != id_column]
    assert target not in features
    shared = [name for name in features if name in train.columns]
    text = [name for name in shared if not (is_numeric_dtype(train[name]) and is_numeric_dtype(test[name]))]
    missing = bool(train[shared].isna().any(axis=None) or test[shared].isna().any(axis=None))
    return {"text_columns": ", ".join(text) or "none", "missing": missing, "rows": len(train)}


def prompt_of(target: str, kind: str, facts: dict[str, Fact]) -> str:
    """The task as the first role reads it.

    >>> prompt_of("price", "regression", {"text_columns": "color, cut", "missing": True, "rows": 300})
    'Target: price (regression). Text columns: color, cut. Missing values: yes.'
    """
    missing = "yes" if facts["missing"] else "no"
    return f"Target: {target} ({kind}). Text columns: {facts['text_columns']}. Missing values: {missing}."


def _read_spec(folder: Path) -> TaskFile:
    path = folder / "task.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=TaskFile)
    except FileNotFoundError:
        _refuse(folder, f"no task.json in {folder}: write one with kind, target and metric")
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        _refuse(folder, f"{path} cannot be used: {error}")


def _check_metric(folder: Path, spec: TaskFile) -> None:
    metric = spec.metric
    if metric.name not in METRICS_OF_KIND[spec.kind]:
        known = ", ".join(map(repr, METRICS_OF_KIND[spec.kind]))
        _refuse(folder, f"metric {metric.name!r} in task.json: a {spec.kind} is measured by {known}")
    greater = GREATER_IS_BETTER[metric.name]
    if metric.greater_is_better != greater:
        _refuse(folder, f"task.json must say greater_is_better: {str(greater).lower()} for {metric.name}")
    better = metric.reference > metric.baseline if greater else metric.reference < metric.baseline
    if not better:
        _refuse(
            folder,
            f"reference score {metric.reference} in task.json is no better than the baseline {metric.baseline}: "
            "measure both again, or leave this task out",
        )


def _read_table(folder: Path, name: str) -> pd.DataFrame:
    try:
        size = (folder / name).stat().st_size
        if size > TABLE_MB << 20:
            _refuse(
                folder, f"{name} has {size >> 20} MiB; a table may have {TABLE_MB}: cut it down, or leave the task out"
            )
        return pd.read_csv(folder / name)
    except FileNotFoundError:
        _refuse(folder, f"{name} is missing: every task folder needs it")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        _refuse(folder, f"{name} is not a CSV table: {error}")
    except OSError as error:
        _refuse(folder, f"{name} cannot be read: {error}")


def _check_columns(folder: Path, spec: TaskFile, tables: Tables) -> None:
    """The id first, the target where it belongs and nowhere else, the same features in train and test."""
    train, test = list(tables.train.columns), list(tables.test.columns)
    for name, columns in (("train.csv", train), ("test.csv", test)):
        if spec.as_published and (spec.id_column in columns or name == "train.csv"):
            continue
        if columns[0] != spec.id_column:
            _refuse(folder, f"public/{name} must begin with the id column {spec.id_column!r}, not {columns[0]!r}")
    if spec.target not in train:
        _refuse(folder, f"public/train.csv has no target column {spec.target!r}: it has {', '.join(train)}")
    if spec.target in test:
        _refuse(folder, f"public/test.csv gives the target {spec.target!r} away: remove that column")
    if not spec.as_published and [name for name in train if name != spec.target] != test:
        _refuse(folder, "public/test.csv must have train.csv's columns, in their order, without the target")
    if len(test) < 2:
        _refuse(folder, "public/train.csv has no feature columns")
    answer = [spec.id_column, spec.target]
    for name, table in (("public/sample_submission.csv", tables.sample), (ANSWERS, tables.answers)):
        if list(table.columns) != answer:
            _refuse(folder, f"{name} must have the columns {', '.join(answer)}, not {', '.join(table.columns)}")


def _check_ids(folder: Path, spec: TaskFile, tables: Tables) -> None:
    named = {
        "public/train.csv": tables.train,
        "public/test.csv": tables.test,
        "public/sample_submission.csv": tables.sample,
        ANSWERS: tables.answers,
    }
    for name, table in named.items():
        if table.empty:
            _refuse(folder, f"{name} has no rows")
        if spec.as_published and name == "public/train.csv":
            continue  # nothing is joined by it
        ids = table[spec.id_column]
        if ids.isna().any() or not (is_integer_dtype(ids) or is_string_dtype(ids)) or is_bool_dtype(ids):
            _refuse(folder, f"{name}: the ids in {spec.id_column!r} must be whole numbers or text, none missing")
        if ids.duplicated().any():
            _refuse(
                folder, f"{name}: id {ids[ids.duplicated()].iloc[0]} is there twice; every row needs an id of its own"
            )
    expected = set(tables.test[spec.id_column])
    for name in ("public/sample_submission.csv", ANSWERS):
        odd = sorted(
            expected.symmetric_difference(named[name][spec.id_column]), key=lambda one: (isinstance(one, str), one)
        )
        if odd:
            _refuse(folder, f"{name} must have exactly test.csv's ids; {len(odd)} differ, the first is {odd[0]}")


def _check_targets(folder: Path, spec: TaskFile, tables: Tables) -> None:
    for name, values in (("public/train.csv", tables.train[spec.target]), (ANSWERS, tables.answers[spec.target])):
        if values.isna().any():
            rows = int(values.isna().sum())
            _refuse(folder, f"{name}: {rows} rows have no {spec.target!r} (empty, or a word read as empty, like 'NA')")
        if spec.kind == "regression" and (not is_numeric_dtype(values) or is_bool_dtype(values)):
            _refuse(folder, f"{name}: the target {spec.target!r} of a regression must be numbers")
    right = [str(value) for value in tables.answers[spec.target]]
    try:
        grade.score_all(right, right, spec.metric.name)
    except grade.Wrong as wrong:
        _refuse(folder, f"{ANSWERS} does not fit the metric {spec.metric.name}: {wrong}")


def _refuse(folder: Path, what: str) -> NoReturn:
    raise TaskError(f"task {folder.name}: {what}")
