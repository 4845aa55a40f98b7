"""What inspection says of a role's work: of the reference, of each planted fault, of hostile files."""

from __future__ import annotations

import asyncio
import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.ensemble  # loaded before the forks of `FolderWorkspace`
from sklearn.linear_model import LinearRegression

from mappa.errors import SandboxError, TaskError
from mappa.tasks import TaskSet, inspect, populate, repair
from mappa.tasks.inspection import ENGINEER_FACTS
from mappa.tasks.probes import engineer as engineer_probe
from mappa.types import Evidence, ExecutionResult, Role, Task

from .workspace import FolderWorkspace, Workspaces

ENGINEER = Role(name="engineer", prompt="", produces=("X_train.pkl", "y_train.pkl", "X_test.pkl"))
MODELER = Role(name="modeler", prompt="", needs=("X_train.pkl", "y_train.pkl"), produces=("model.pkl",))
ANALYST = Role(name="analyst", prompt="", needs=("model.pkl", "X_test.pkl"), produces=("submission.csv",))
ARTEFACTS = (*ENGINEER.produces, *MODELER.produces)


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> FolderWorkspace:
    return FolderWorkspace(tmp_path / "episode")


def task_named(tasks: TaskSet, name: str) -> Task:
    (found,) = (task for task in tasks.train + tasks.heldout if task.id == name)
    return found


def look(task: Task, role: Role, workspace: FolderWorkspace, workspaces: Workspaces) -> Evidence:
    return asyncio.run(inspect(task, role, workspace, workspaces.open))


def reference_submission(task: Task) -> pd.DataFrame:
    model, table = (pd.read_pickle(f"{task.folder}/private/reference/{name}.pkl") for name in ("model", "X_test"))
    return pd.DataFrame({"id": table.index, task.target: model.predict(table)})


# --- the reference, on every task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Boston", "penguins", "BankWages", "leafshape", "births14"])
def test_the_reference_succeeds(
    name: str, quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, name)
    assert task.metric is not None
    populate(task, workspace)
    repair(task, workspace, ARTEFACTS)
    reference_submission(task).to_csv(workspace.folder / "submission.csv", index=False)

    evidence = look(task, ENGINEER, workspace, workspaces)
    assert (evidence.success, evidence.fault) == (True, None)
    assert evidence.facts == dict.fromkeys(ENGINEER_FACTS, True)
    for role in MODELER, ANALYST:
        evidence = look(task, role, workspace, workspaces)
        assert (evidence.success, evidence.fault) == (True, None)
        assert evidence.facts["score"] == pytest.approx(task.metric.reference, rel=1e-12)
        assert evidence.facts["normalised"] == pytest.approx(1.0)
        assert all(value is True for name, value in evidence.facts.items() if name not in ("score", "normalised"))


def test_answers_never_share_a_workspace_with_a_pickle(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)
    reference_submission(task).to_csv(workspace.folder / "submission.csv", index=False)
    for role in ENGINEER, MODELER, ANALYST:
        look(task, role, workspace, workspaces)
    given = [set(opened.files()) for opened in workspaces.opened]
    assert sum("answers.csv" in files for files in given) == 2
    assert not any("answers.csv" in files and any(name.endswith(".pkl") for name in files) for files in given)
    assert all(opened.closed for opened in workspaces.opened)
    assert sorted(workspace.files()) == sorted([*ARTEFACTS, "submission.csv"]), "the episode's workspace was changed"


def test_host_and_probe_know_the_same_facts() -> None:
    assert set(engineer_probe.FACTS) == set(ENGINEER_FACTS)


# --- planted faults of the data engineer -----------------------------------------------------------------------------


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


# --- models ----------------------------------------------------------------------------------------------------------


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


# --- submissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "fault", "wrong"),
    [
        (
            lambda s: s.rename(columns={"HHV": "hhv"}),
            "column 'hhv' is not the target 'HHV'",
            {"columns", "ids", "values"},
        ),
        (lambda s: s.rename(columns={"id": ""}), "column '' is not the id 'id'", {"columns", "ids", "values"}),
        (lambda s: s[["HHV"]], "columns are 'HHV', not 'id', 'HHV'", {"columns", "ids", "values"}),
        (lambda s: s[["HHV", "id"]], "columns are 'HHV', 'id', not", {"columns", "ids", "values"}),
        (lambda s: s.assign(more=1), "columns are 'id', 'HHV', 'more', not", {"columns", "ids", "values"}),
        (lambda s: s.assign(id=range(len(s))), "134 ids are not in test.csv, the first is 0", {"ids", "values"}),
        (lambda s: s.iloc[:-3], "3 of 134 ids are missing, the first is 534", {"ids", "values"}),
        (lambda s: pd.concat([s, s.tail(1)]), "id 536 is there twice", {"ids", "values"}),
        (lambda s: s.assign(id="x"), "id 'x' is not a whole number", {"ids", "values"}),
        (lambda s: s.assign(HHV=s["HHV"].where(s.index > 3)), "predictions are missing for some rows", {"values"}),
        (lambda s: s.assign(HHV="high"), "'high' is not a number", {"values"}),
        (lambda s: s.assign(HHV=np.inf), "'inf' is not a finite number", {"values"}),
        (lambda s: s.assign(HHV=0.0), "no better than the baseline", set()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_submissions_that_fail(
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    fault: str,
    wrong: set[str],
    quickstart: TaskSet,
    workspace: FolderWorkspace,
    workspaces: Workspaces,
) -> None:
    task = task_named(quickstart, "biomass")
    spoil(reference_submission(task)).to_csv(workspace.folder / "submission.csv", index=False)
    evidence = look(task, ANALYST, workspace, workspaces)
    assert not evidence.success
    assert (evidence.fault or "").startswith(fault)
    checks = ("submission.csv", "readable", "columns", "ids", "values")
    assert {name for name in checks if not evidence.facts[name]} == wrong
    assert (evidence.facts["score"] is None) == bool(wrong)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "columns are none, not 'id', 'HHV'"),
        (b"\x00\xff\xfe", "submission.csv is not a CSV table"),
        (b"id,HHV\n1,2,3\n", "a row has 3 fields, not 2"),
        (b"id,HHV\n", "134 of 134 ids are missing"),
        (b'id,HHV\n1,"2\n', "submission.csv is not a CSV table"),
        (b"id,HHV\n" + b"1" * 200_000, "submission.csv is not a CSV table: field larger than"),
        (b"x" * (9 << 20), "submission.csv has 9 MiB, at most 8 are read"),
    ],
    ids=["empty", "bytes", "ragged", "no rows", "open quote", "huge field", "huge file"],
)
def test_submissions_that_are_no_tables(
    data: bytes, fault: str, quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    workspace.put("submission.csv", data)
    evidence = look(task_named(quickstart, "biomass"), ANALYST, workspace, workspaces)
    assert (evidence.fault or "").startswith(fault)
    assert not evidence.success


def test_form_that_does_not_matter(quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces) -> None:
    """Row order, a byte order mark, ids written as floats, Windows line ends."""
    task = task_named(quickstart, "biomass")
    table = reference_submission(task).iloc[::-1].astype({"id": float})
    workspace.put("submission.csv", b"\xef\xbb\xbf" + table.to_csv(index=False, lineterminator="\r\n").encode())
    assert look(task, ANALYST, workspace, workspaces).success


# --- the sandbox's own failures, and roles nobody knows --------------------------------------------------------------


class BrokenWorkspace(FolderWorkspace):
    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        return ExecutionResult(outcome="sandbox-failure", stderr="bwrap: no namespaces")


class SilentWorkspace(FolderWorkspace):
    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:
        return ExecutionResult(outcome="memory")


def test_a_broken_sandbox_is_nobodys_fault(quickstart: TaskSet, workspace: FolderWorkspace, tmp_path: Path) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)
    opened = BrokenWorkspace(tmp_path / "broken")

    async def open_workspace() -> BrokenWorkspace:
        return opened

    with pytest.raises(SandboxError, match="bwrap: no namespaces"):
        asyncio.run(inspect(task, MODELER, workspace, open_workspace))
    assert opened.closed


def test_a_file_that_cannot_be_opened_is_its_makers_fault(
    quickstart: TaskSet, workspace: FolderWorkspace, tmp_path: Path
) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)

    async def open_workspace() -> SilentWorkspace:
        return SilentWorkspace(tmp_path / "silent")

    evidence = asyncio.run(inspect(task, MODELER, workspace, open_workspace))
    assert evidence.fault == "model.pkl could not be opened: memory, report.json missing"


class UnreadableWorkspace(FolderWorkspace):
    def read(self, path: str, limit: int = 1 << 26) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", path)


class FullWorkspace(FolderWorkspace):
    def put(self, path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)


def test_files_that_cannot_be_read_or_copied_are_their_makers_fault(quickstart: TaskSet, tmp_path: Path) -> None:
    task = task_named(quickstart, "Boston")
    shut = UnreadableWorkspace(tmp_path / "shut")
    repair(task, shut, ARTEFACTS)
    never_opened = Workspaces(tmp_path)
    assert look(task, MODELER, shut, never_opened).fault == "model.pkl cannot be read: Permission denied"
    assert not never_opened.opened

    async def open_full() -> FullWorkspace:
        return FullWorkspace(tmp_path / "full")

    workspace = FolderWorkspace(tmp_path / "episode")
    repair(task, workspace, ARTEFACTS)
    evidence = asyncio.run(inspect(task, ENGINEER, workspace, open_full))
    assert evidence.fault == "X_train.pkl could not be opened: No space left on device"
    assert not any(evidence.facts.values())


def test_a_model_with_no_table_at_all(quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces) -> None:
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ("model.pkl",))
    (workspace.folder / "X_test.pkl").unlink()
    evidence = look(task, MODELER, workspace, workspaces)
    assert evidence.fault == "there is no table to try the model on"
    assert evidence.facts["has_predict"] is True
    assert evidence.facts["predicts"] is False


def test_a_role_that_produces_something_unknown_is_refused(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    poet = Role(name="poet", prompt="", produces=("poem.txt",))
    with pytest.raises(TaskError, match=r"no check for role 'poet', which produces poem.txt"):
        look(quickstart.train[0], poet, workspace, workspaces)


assert sklearn.ensemble  # imported for its side effect alone
