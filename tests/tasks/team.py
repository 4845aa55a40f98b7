"""The three roles of a tabular team, and the short ways in which tests look at their work."""

from __future__ import annotations

import asyncio

import pandas as pd
import sklearn.ensemble  # noqa: F401 - loaded before the forks of `FolderWorkspace`

from mappa.tasks import TaskSet, inspect
from mappa.types import Evidence, Role, Task

from .workspace import FolderWorkspace, Workspaces

ENGINEER = Role(name="engineer", prompt="", produces=("X_train.pkl", "y_train.pkl", "X_test.pkl"))
MODELER = Role(name="modeler", prompt="", needs=("X_train.pkl", "y_train.pkl"), produces=("model.pkl",))
ANALYST = Role(name="analyst", prompt="", needs=("model.pkl", "X_test.pkl"), produces=("submission.csv",))
ARTEFACTS = (*ENGINEER.produces, *MODELER.produces)


def task_named(tasks: TaskSet, name: str) -> Task:
    (found,) = (task for task in tasks.train + tasks.heldout if task.id == name)
    return found


def look(task: Task, role: Role, workspace: FolderWorkspace, workspaces: Workspaces) -> Evidence:
    evidence = asyncio.run(inspect(task, role, workspace, workspaces.open))
    assert evidence is not None
    return evidence


def reference_submission(task: Task) -> pd.DataFrame:
    model, table = (pd.read_pickle(f"{task.folder}/private/reference/{name}.pkl") for name in ("model", "X_test"))
    return pd.DataFrame({"id": table.index, task.target: model.predict(table)})
