"""The tabular suite: 64 training tasks on real tables, and as many held-out ones as share nothing with them.

tabular.tsv lists the tables. A task that gives its target away, or a held-out one whose rows or columns a training task
has, is left out and named; building is quickstart.py's.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import msgspec

from mappa.errors import TaskError
from mappa.tasks import quickstart
from mappa.tasks.catalogue import Table
from mappa.tasks.contamination import contamination, given_away
from mappa.tasks.folder import load_task
from mappa.tasks.found import Found, Refused
from mappa.tasks.store import open_or_build
from mappa.types import Task

LIST = Path(__file__).with_name("tabular.tsv")
DISK_MB = 1024


def read_tabular(cache: Path, tables: Path = LIST) -> Found:
    """The suite, built on first use (some minutes). Raises TaskError, DiskError."""
    folder = cache / "tasks" / f"tabular-{quickstart.version(LIST, Path(__file__), tables)}"
    root = open_or_build(folder, lambda building: _build(building, tables), megabytes=DISK_MB)
    refused: list[Refused] = []
    for line in (root / "refused.tsv").read_text().splitlines():
        name, _, why = line.partition("\t")
        refused.append(Refused(name, why))
    train, heldout = (_load(root / split, refused) for split in ("train", "heldout"))
    overlaps = contamination(train, heldout)
    shared = {overlap.heldout for overlap in overlaps}
    refused += [Refused(o.heldout, f"shares its {o.how} with the training task {o.train}") for o in overlaps]
    return Found(train=train, heldout=tuple(t for t in heldout if t.id not in shared), refused=tuple(refused))


def suite(tables: Path = LIST) -> dict[str, list[Table]]:
    """The tables by split."""
    found: dict[str, list[Table]] = {"train": [], "heldout": []}
    with tables.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            drop = [name for name in row.pop("drop").split(",") if name]
            found[row.pop("split")].append(msgspec.convert({**row, "drop": drop}, Table))
    return found


def name_of(table: Table) -> str:
    """`AER-CPS1988-wage`: a data set may be in several packages, and have several targets."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{table.package}-{table.dataset}-{table.target}")


def _build(root: Path, tables: Path) -> None:
    refused = []
    for split, listed in suite(tables).items():
        (root / split).mkdir()
        for table in listed:
            try:
                quickstart.build_task(root / split / name_of(table), table)
            except (TaskError, ValueError) as error:
                refused.append(f"{name_of(table)}\t{' '.join(str(error).split())}\n")
    (root / "refused.tsv").write_text("".join(refused))


def _load(root: Path, refused: list[Refused]) -> tuple[Task, ...]:
    tasks = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            task = load_task(folder)
        except TaskError as error:
            refused.append(Refused(folder.name, str(error)))
            continue
        leaks = given_away(task)
        if leaks:
            refused.append(Refused(task.id, f"the column {leaks[0]!r} gives the target away"))
        else:
            tasks.append(task)
    return tuple(tasks)
