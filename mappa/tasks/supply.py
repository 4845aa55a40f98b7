"""What the host puts into an episode's workspace: the public tables, and in training the reference artefacts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from mappa.errors import TaskError
from mappa.tasks.folder import PUBLIC_FILES, REFERENCE
from mappa.types import Task, Workspace

RESULT = "submission.csv"


def populate(task: Task, workspace: Workspace) -> None:
    """Put train.csv, test.csv and sample_submission.csv into `workspace`; nothing for a task without files."""
    if not task.folder:
        return
    for name in PUBLIC_FILES:
        _put(task, workspace, name, read_cached(f"{task.folder}/public/{name}"))


def public_files(task: Task) -> dict[str, int]:
    """What `populate` puts there: names and sizes in bytes."""
    return {name: len(read_cached(f"{task.folder}/public/{name}")) for name in PUBLIC_FILES} if task.folder else {}


def repair(task: Task, workspace: Workspace, names: Sequence[str]) -> tuple[str, ...]:
    """Put the reference artefacts of those names into `workspace`, over whatever is there; return what was put.

    model.pkl brings X_test.pkl along: the reference model knows the reference tables' columns only, and whoever works
    from it must not fail for the columns that another role chose. A submission is never put right: it is what the
    episode is for, and nobody works from it. Raises TaskError where the task has no such reference.
    """
    if not task.folder:
        raise TaskError(f"task {task.id} has no files to put right; set rollout.repair_upstream=false")
    needed = [name for name in names if name != RESULT]
    put = tuple(dict.fromkeys((*needed, *(("X_test.pkl",) if "model.pkl" in needed else ()))))
    for name in put:
        try:
            data = read_cached(f"{task.folder}/{REFERENCE}/{name}")
        except FileNotFoundError:
            raise TaskError(
                f"task {task.id} has no {REFERENCE}/{name}: add it, or set rollout.repair_upstream=false"
            ) from None
        _put(task, workspace, name, data)
    return put


def _put(task: Task, workspace: Workspace, name: str, data: bytes) -> None:
    try:
        workspace.put(name, data)
    except OSError as error:  # model-written code may have filled the workspace, or made a folder of that name
        raise TaskError(f"task {task.id}: {name} does not go into the workspace: {error.strerror}") from error


@lru_cache(maxsize=512)
def read_cached(path: str) -> bytes:
    """A task's file; read once, since the event loop must not wait for a disk."""
    return Path(path).read_bytes()


@lru_cache(maxsize=512)
def size_of(path: str) -> int:
    """Bytes of a task's file; 0 of one that is missing, which is said where it is read."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0
