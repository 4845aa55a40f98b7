"""Submissions: what is wrong with each bad one, and what does not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mappa.tasks import TaskSet

from .team import ANALYST, look, reference_submission, task_named
from .workspace import FolderWorkspace, Workspaces


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


def test_a_gigabyte_is_never_read(quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces) -> None:
    """Its size alone refuses it: what was read and handed to the grading workspace is nothing."""
    with open(workspace.folder / "submission.csv", "wb") as file:
        file.truncate(1 << 30)
    evidence = look(task_named(quickstart, "biomass"), ANALYST, workspace, workspaces)
    assert evidence.fault == "submission.csv has 1024 MiB, at most 8 are read"
    assert not evidence.success and not any("submission.csv" in opened.files() for opened in workspaces.opened)


def test_form_that_does_not_matter(quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces) -> None:
    """Row order, a byte order mark, ids written as floats, Windows line ends."""
    task = task_named(quickstart, "biomass")
    table = reference_submission(task).iloc[::-1].astype({"id": float})
    workspace.put("submission.csv", b"\xef\xbb\xbf" + table.to_csv(index=False, lineterminator="\r\n").encode())
    assert look(task, ANALYST, workspace, workspaces).success
