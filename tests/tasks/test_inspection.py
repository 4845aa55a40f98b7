"""What inspection says of the reference, of files it cannot open, and of a sandbox that fails."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from mappa.errors import SandboxError
from mappa.tasks import TaskSet, inspect, inspection, outcome, populate, repair
from mappa.tasks.inspection import ENGINEER_FACTS, SCORES
from mappa.tasks.probes import engineer as engineer_probe
from mappa.types import Action, Evidence, ExecutionResult, Role

from .team import ANALYST, ARTEFACTS, ENGINEER, MODELER, look, reference_submission, task_named
from .workspace import FolderWorkspace, Workspaces


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
        assert all(value is True for name, value in evidence.facts.items() if name not in SCORES)


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


def test_a_role_may_make_several_things(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    """One agent alone makes all of them, and a note besides: it succeeds if each of them is in order."""
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ARTEFACTS)
    reference_submission(task).to_csv(workspace.folder / "submission.csv", index=False)
    alone = Role(name="alone", prompt="", produces=(*ARTEFACTS, "submission.csv", "notes.md"))
    evidence = look(task, alone, workspace, workspaces)
    assert (evidence.success, evidence.fault) == (False, "notes.md missing")
    workspace.put("notes.md", b"done")
    evidence = look(task, alone, workspace, workspaces)
    assert evidence.success and {*ENGINEER_FACTS, "predicts", "submission.csv", "notes.md"} <= set(evidence.facts)
    action = Action(
        role="alone", turn=0, adapter="alone@0", prompt_ids=(1,), output_ids=(2,), logprobs=(0.0,),
        finish_reason="stop", text="", evidence=evidence,
    )  # fmt: skip
    assert outcome(task, [action]).success


def test_what_is_read_grows_with_the_tables_of_the_task(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the least that may always be read set to nothing."""
    monkeypatch.setattr(inspection, "PICKLE_MB", 0)
    monkeypatch.setattr(inspection, "TABLE_MB", 0)
    task = task_named(quickstart, "Boston")
    repair(task, workspace, ("X_train.pkl", "y_train.pkl", "X_test.pkl"))
    table = reference_submission(task)
    table.to_csv(workspace.folder / "submission.csv", index=False)
    assert look(task, ENGINEER, workspace, workspaces).success and look(task, ANALYST, workspace, workspaces).success
    workspace.put("submission.csv", table.to_csv(index=False).encode() + b"\n" * 100_000)
    assert (look(task, ANALYST, workspace, workspaces).fault or "").startswith("submission.csv has 0 MiB, at most")


def test_of_files_that_nobody_knows_only_their_being_there_is_measured(
    quickstart: TaskSet, workspace: FolderWorkspace, workspaces: Workspaces
) -> None:
    poet = Role(name="poet", prompt="", produces=("poem.txt", "title.txt"))
    workspace.put("title.txt", b"Ode")
    evidence = look(quickstart.train[0], poet, workspace, workspaces)
    assert evidence == Evidence(success=False, fault="poem.txt missing", facts={"poem.txt": False, "title.txt": True})
    workspace.put("poem.txt", b"...")
    assert look(quickstart.train[0], poet, workspace, workspaces).success
    talker = Role(name="talker", prompt="")
    assert asyncio.run(inspect(quickstart.train[0], talker, workspace, workspaces.open)) is None
