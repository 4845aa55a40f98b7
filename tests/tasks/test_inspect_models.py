"""Models that fail, models that lie, and how their predictions find their rows."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mappa.tasks import TaskSet, repair
from mappa.types import Evidence, Task

from .team import ARTEFACTS, ENGINEER, MODELER, look, task_named
from .workspace import FolderWorkspace, Workspaces


class ThreeRows:
    def predict(self, table: pd.DataFrame) -> list[float]:
        return [1.0, 2.0, 3.0]


class Constant:
    def __init__(self, value: Any) -> None:
        self.value = value

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        return np.full(len(table), self.value)


class Ends:
    """A pickle that ends the process which opens it, after forging a report."""

    FORGED = (
        "import json, os; facts = {'model.pkl': True, 'has_predict': True, 'predicts': True};"
        "json.dump({'facts': facts, 'fault': None, 'score': 0.0}, open('report.json', 'w')); os._exit(0)"
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.FORGED,)


class EndsQuietly:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; os._exit(0)",)


def model_evidence(model: object, task: Task, workspace: FolderWorkspace, workspaces: Workspaces) -> Evidence:
    repair(task, workspace, ENGINEER.produces)
    workspace.put("model.pkl", model if isinstance(model, bytes) else pickle.dumps(model))
    return look(task, MODELER, workspace, workspaces)


@pytest.mark.parametrize(
    ("model", "fault", "wrong"),
    [
        (b"not a pickle", "model.pkl does not load: UnpicklingError", {"model.pkl", "has_predict", "predicts"}),
        ({"a": 1}, "model.pkl holds a dict, which has no predict", {"has_predict", "predicts"}),
        (LinearRegression(), "model cannot predict X_test.pkl: NotFittedError", {"predicts"}),
        (ThreeRows(), "model predicts 3 rows, 126 expected", {"predicts"}),
        (Constant(22.0), "no better than the baseline", set()),
        (Constant(np.nan), "predictions are missing for some rows", {"graded"}),
        (Constant(np.inf), "'inf' is not a finite number", {"graded"}),
        (Constant(1e300), "predictions are too large to be measured", {"graded"}),
        (Constant("high"), "'high' is not a number", {"graded"}),
        (Ends(), "no predictions were written", {"graded"}),
        (
            EndsQuietly(),
            "model.pkl could not be opened: ok, report.json missing",
            {"model.pkl", "has_predict", "predicts"},
        ),
    ],
    ids=["garbage", "dict", "not fitted", "three rows", "constant", "nan", "inf", "huge", "words", "forger", "quitter"],
)
def test_models_that_fail(
    model: object, fault: str, wrong: set[str], quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "Boston")
    evidence = model_evidence(model, task, workspace, workspaces)
    assert not evidence.success
    assert (evidence.fault or "").startswith(fault)
    checks = ("model.pkl", "has_predict", "predicts", "graded")
    assert {name for name in checks if not evidence.facts[name]} == wrong | ({"graded"} if wrong else set())
    assert evidence.facts["beats_baseline"] is False
    assert all(opened.closed for opened in workspaces.opened)


def test_a_model_is_tried_where_there_is_no_test_table(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)
    (workspace.folder / "X_test.pkl").unlink()
    evidence = look(task, MODELER, workspace, workspaces)
    assert evidence.fault == "model cannot be graded: X_test.pkl missing"
    assert evidence.facts["predicts"] is True
    assert (evidence.facts["graded"], evidence.facts["score"]) == (False, None)


def test_rows_are_joined_by_the_ids_that_x_test_carries(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)
    table = pd.read_pickle(workspace.folder / "X_test.pkl")
    by_index = look(task, MODELER, workspace, workspaces)
    pd.to_pickle(table.iloc[::-1], workspace.folder / "X_test.pkl")
    assert look(task, MODELER, workspace, workspaces) == by_index
    pd.to_pickle(table.reset_index(drop=True), workspace.folder / "X_test.pkl")
    assert look(task, MODELER, workspace, workspaces) == by_index


def test_class_labels_and_probabilities(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    """A Regressor on a 0/1 target predicts fractions: valid numbers, but never the right class."""
    task = task_named(quickstart, "leafshape")
    fractions = model_evidence(Constant(0.4), task, workspace, workspaces)
    assert (fractions.facts["graded"], fractions.facts["score"]) == (True, 0.0)
    as_float = model_evidence(Constant(0.0), task, workspace, workspaces)
    assert task.metric is not None
    assert as_float.facts["score"] == pytest.approx(task.metric.baseline)
    assert as_float.fault == "no better than the baseline"
