"""Planted faults of a data engineer, and the other right ways to do the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from mappa.tasks import TaskSet
from mappa.tasks.inspection import ENGINEER_FACTS
from mappa.types import Task

from .team import ENGINEER, look, task_named
from .workspace import FolderWorkspace, Workspaces


class Tables:
    """A data engineer's three tables and the raw ones, for a test to spoil."""

    def __init__(self, task: Task) -> None:
        reference = Path(task.folder, "private", "reference")
        self.x, self.y, self.z = (
            pd.read_pickle(reference / f"{name}.pkl") for name in ("X_train", "y_train", "X_test")
        )
        self.train = pd.read_csv(f"{task.folder}/public/train.csv", index_col="id")
        self.test = pd.read_csv(f"{task.folder}/public/test.csv", index_col="id")

    def save(self, folder: Path) -> None:
        for name, thing in (("X_train", self.x), ("y_train", self.y), ("X_test", self.z)):
            if thing is not None:
                pd.to_pickle(thing, folder / f"{name}.pkl")


def filled(table: pd.DataFrame) -> pd.DataFrame:
    return table.fillna(table.mode().iloc[0])


def change(**parts: Callable[[Tables], Any]) -> Callable[[Tables], None]:
    def spoil(tables: Tables) -> None:
        for name, make in parts.items():
            setattr(tables, name, make(tables))

    return spoil


PLANTED: dict[str, tuple[Callable[[Tables], None], str, set[str]]] = {
    "no X_test": (
        change(z=lambda t: None),
        "X_test.pkl missing",
        {"X_test.pkl", "shapes", "ids", "target_left_out", "same_columns", "numeric", "no_missing"},
    ),
    "nothing": (
        change(x=lambda t: None, y=lambda t: None, z=lambda t: None),
        "X_train.pkl missing",
        set(ENGINEER_FACTS),
    ),
    "text left": (
        change(x=lambda t: filled(t.train).drop(columns="species"), z=lambda t: filled(t.test)),
        "text columns left: island, sex",
        {"numeric"},
    ),
    "missing left": (
        change(x=lambda t: pd.get_dummies(t.train.drop(columns="species")), z=lambda t: pd.get_dummies(t.test)),
        "missing values left: bill_length_mm, bill_depth_mm, flipper_length_mm, body_mass_g",
        {"no_missing"},
    ),
    "infinite": (change(x=lambda t: t.x.assign(year=np.inf)), "missing values left: year", {"no_missing"}),
    "target in features": (
        change(x=lambda t: t.x.assign(species=1.0), z=lambda t: t.z.assign(species=1.0)),
        "target left in X_train.pkl: species",
        {"target_left_out"},
    ),
    "target as dummies": (
        change(x=lambda t: pd.get_dummies(t.train).fillna(0).astype(float)),
        "target left in X_train.pkl: species_Adelie, species_Chinstrap, species_Gentoo",
        {"target_left_out", "same_columns"},
    ),
    "columns of the test missing": (
        change(z=lambda t: t.z.drop(columns=["year", "sex_male"])),
        "columns of X_train.pkl that X_test.pkl lacks: year, sex_male",
        {"same_columns"},
    ),
    "columns in another order": (
        change(z=lambda t: t.z[t.z.columns[::-1]]),
        "X_test.pkl has X_train.pkl's columns in another order",
        {"same_columns"},
    ),
    "rows dropped": (
        change(x=lambda t: t.x.iloc[:200], y=lambda t: t.y.iloc[:200]),
        "X_train.pkl has 200 rows, 258 expected",
        {"shapes", "target_values"},
    ),
    "the training table as the test table": (
        change(z=lambda t: t.x),
        "X_test.pkl has 258 rows, 86 expected",
        {"shapes", "ids"},
    ),
    "y as a table": (change(y=lambda t: t.y.to_frame()), "y_train.pkl has 2 dimensions, 1 expected", {"shapes"}),
    "y is a feature": (change(y=lambda t: t.x["year"]), "y_train.pkl is not the target 'species'", {"target_values"}),
    "y as codes": (
        change(y=lambda t: t.y.astype("category").cat.codes),
        "y_train.pkl is not the target 'species'",
        {"target_values"},
    ),
    "rows and targets in different orders": (
        change(y=lambda t: t.y.sample(frac=1, random_state=1)),
        "y_train.pkl is not the target 'species'",
        {"target_values"},
    ),
    "no ids": (change(z=lambda t: t.z.reset_index(drop=True)), "", {"ids"}),
    "not a table": (
        change(x=lambda t: {"a": 1}),
        "X_train.pkl does not load: TypeError: it holds a dict, not a table",
        {"X_train.pkl", "shapes", "target_left_out", "same_columns", "numeric", "no_missing"},
    ),
    "a scaler for a table": (
        change(z=lambda t: LinearRegression()),
        "X_test.pkl does not load: UnpicklingError: it holds sklearn.linear_model._base.LinearRegression",
        {"X_test.pkl", "shapes", "ids", "target_left_out", "same_columns", "numeric", "no_missing"},
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_fault_of_the_engineer(
    case: str, quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    spoil, fault, wrong = PLANTED[case]
    task = task_named(quickstart, "penguins")
    tables = Tables(task)
    spoil(tables)
    tables.save(workspace.folder)
    evidence = look(task, ENGINEER, workspace, workspaces)
    assert (evidence.fault or "").startswith(fault) if fault else evidence.fault is None
    assert {name for name, holds in evidence.facts.items() if not holds} == wrong
    assert evidence.success == (wrong <= {"ids"})


@pytest.mark.parametrize(
    "spoil",
    [
        change(x=lambda t: t.x.to_numpy(), y=lambda t: t.y.to_numpy(), z=lambda t: t.z.to_numpy()),
        change(y=lambda t: list(t.y)),
        change(
            y=lambda t: t.y.astype("category"), x=lambda t: t.x.astype("float32"), z=lambda t: t.z.astype("float32")
        ),
        change(x=lambda t: t.x.iloc[::-1], y=lambda t: t.y.iloc[::-1]),
        change(x=lambda t: t.x.astype(pd.SparseDtype(float, 0.0)), z=lambda t: t.z.astype("Float64")),
        change(x=lambda t: t.x.reset_index(), z=lambda t: t.z.reset_index()),
    ],
    ids=["arrays", "a list", "categories", "another order of rows", "sparse", "ids as a column"],
)
def test_other_right_ways(
    spoil: Callable[[Tables], None], quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "penguins")
    tables = Tables(task)
    spoil(tables)
    tables.save(workspace.folder)
    assert look(task, ENGINEER, workspace, workspaces).fault is None


def test_exact_case_of_the_target_is_quoted(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "biomass")
    tables = Tables(task)
    tables.y = tables.x["carbon"].rename("hhv")
    tables.save(workspace.folder)
    assert look(task, ENGINEER, workspace, workspaces).fault == "y_train.pkl is not the target 'HHV'"
