"""From a source's name to checked tasks."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from mappa.errors import TaskError
from mappa.tasks.folder import load_task
from mappa.tasks.quickstart import quickstart_folder
from mappa.types import Task


class TaskSet(Struct, frozen=True):
    """The tasks to learn from and the tasks to measure on; no id is in both."""

    train: tuple[Task, ...]
    heldout: tuple[Task, ...]


def prepare(source: str, cache: Path) -> TaskSet:
    """The tasks of `source`: 'quickstart' (built once under `cache`) or a folder with train/ and heldout/.

    Raises TaskError for a folder or task that cannot be used, DiskError where the cache does not fit.
    """
    root = quickstart_folder(cache) if source == "quickstart" else Path(source).expanduser()
    if not root.is_dir():
        raise TaskError(f"no task folder at {root}: tasks.source is 'quickstart' or a folder with train/ and heldout/")
    tasks = TaskSet(train=_load_split(root, "train"), heldout=_load_split(root, "heldout"))
    twice = {task.id for task in tasks.train} & {task.id for task in tasks.heldout}
    if twice:
        raise TaskError(
            f"{root}: {', '.join(sorted(twice))} in both train/ and heldout/: a held-out task must be unseen"
        )
    return tasks


def _load_split(root: Path, split: str) -> tuple[Task, ...]:
    folders = sorted(path for path in (root / split).glob("*") if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise TaskError(f"{root} has no task folders in {split}/: each task is a folder with task.json in it")
    return tuple(load_task(folder) for folder in folders)
