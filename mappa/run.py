"""The folder of one run: what belongs to it, whether it may go on, and what it still has to do.

runs/NAME/
    config.json             the config it was started with
    journal.sqlite          every episode, action, verdict
    metrics.jsonl           one line per step
    checkpoints/step-N/     to resume from
    evaluation-*.json       measurements on the held-out tasks
    adapters/ROLE/          the trained team, PEFT format
    summary.json, curves.png, report.html, tensorboard/
"""

from __future__ import annotations

import errno
import fcntl
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import replace

from mappa.config import Config, LearnConfig, RoleLearnConfig, config_from, differences
from mappa.errors import ConfigError, DiskError
from mappa.learn import checkpoint
from mappa.systems import adapters_of, frozen_adapters, team_of
from mappa.types import Task

_NEEDED_BYTES = 1 << 30
_STAMP, _BUILDING = "config.json", "config.building"


class Run:
    """A run's folder, locked for this process while open."""

    def __init__(self, folder: Path, config: Config, lock: IO[str]) -> None:
        self.folder = folder
        self.config = config
        self.checkpoints = folder / "checkpoints"
        self.journal = folder / "journal.sqlite"
        self.metrics = folder / "metrics.jsonl"
        self.adapters = folder / "adapters"
        self.notes: list[str] = []
        """What a person should be told when the run goes on."""
        self._lock = lock

    @classmethod
    def open(cls, config: Config, *, fresh: bool) -> Run:
        """Open the run's folder to begin or to go on; `fresh`: delete first what a run left in it.

        Raises ConfigError if it cannot be a folder, it belongs to another config, another process is at work in it, or
        it is to be deleted and is no run's; DiskError if there is no room to work in.
        """
        folder = Path(config.runs) / config.name
        with ExitStack() as stack, _usable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(_lock(folder.with_name(f".{folder.name}.lock"), folder))
            _take(folder, config, fresh=fresh)
            stack.pop_all()
        return cls(folder, config, lock)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint.name(step)

    def last_checkpoint(self) -> Path | None:
        """Where to go on from; damaged checkpoints are passed over, each with a note."""
        found, refused = checkpoint.latest(self.checkpoints)
        instead = "going on from the one before it" if found is not None else "learning begins anew"
        self.notes += [f"{line}; {instead}" for line in refused]
        if found is not None:
            self.notes.append(f"continuing {self.folder} from {found.name}")
        return found

    def prune(self) -> None:
        """Keep the newest `keep` checkpoints."""
        checkpoint.prune(self.checkpoints, self.config.keep)

    def close(self) -> None:
        self._lock.close()


def tasks_of_step(tasks: Sequence[Task], step: int, count: int, seed: int) -> list[Task]:
    """The tasks of one step: `count` in a row out of endless shuffled passes. Depends on its arguments alone."""
    chosen = []
    for position in range(step * count, (step + 1) * count):
        order = list(range(len(tasks)))
        random.Random(f"{seed}/{position // len(tasks)}").shuffle(order)
        chosen.append(tasks[order[position % len(tasks)]])
    return chosen


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """ConfigError where the file system says that there is no such folder to be had, DiskError where it is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(f"no space is left for {folder}; free some or set runs=FOLDER elsewhere") from error
        raise ConfigError(f"{folder} cannot be a run's folder: {error}; set runs=FOLDER or name=OTHER") from error


def _lock(path: Path, folder: Path) -> IO[str]:
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"another process is at work in {folder}; wait for it, stop it, or set name=OTHER") from None
    return lock


def _take(folder: Path, config: Config, *, fresh: bool) -> None:
    """Have the folder belong to `config`. See Run.open."""
    if fresh:
        _clear(folder)
    folder.mkdir(exist_ok=True)
    if shutil.disk_usage(folder).free < _NEEDED_BYTES:
        raise DiskError(f"less than 1 GiB is free under {folder}; free some or set runs=FOLDER elsewhere")
    stamp = folder / _STAMP
    if stamp.exists():
        _refuse_other(stamp, config, folder)
    else:
        building = folder / _BUILDING
        building.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
        building.rename(stamp)


def _clear(folder: Path) -> None:
    """Delete what a run left in `folder`, what makes it a run at the very end: a deletion that was interrupted can be
    given again. Raises ConfigError for a folder that is no run's: whatever it holds was not made here."""
    if not folder.exists():
        return
    held = {path.name: path for path in folder.iterdir() if path.name != _BUILDING}
    stamp = held.pop(_STAMP, None)
    if (held or stamp) and not _is_stamp(stamp):
        raise ConfigError(
            f"{folder} is not deleted: it holds {min(held, default=_STAMP)} and no {_STAMP} of a run; move it away, or "
            "set name=OTHER"
        )
    for path in held.values():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if stamp is not None:
        stamp.unlink()


def _is_stamp(path: Path | None) -> bool:
    """Whether it is a run's config, of any version: the folders of models have a config.json too."""
    try:
        found = msgspec.json.decode(path.read_bytes()) if path is not None else None
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(found, dict) and {"name", "model", "learn"} <= found.keys()


def _refuse_other(stamp: Path, config: Config, folder: Path) -> None:
    try:
        old = config_from(msgspec.json.decode(stamp.read_bytes()), where=str(stamp))
    except (ConfigError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{folder} was made by another version of mappa ({error}); run with --fresh, or set name=OTHER"
        ) from error
    changed = differences(old, config)
    if changed:
        listed = "\n  ".join(changed)
        raise ConfigError(
            f"{folder} holds a run of another config:\n  {listed}\nrun with --fresh to start over, or set name=OTHER"
        )


def learn_settings(config: Config) -> LearnConfig:
    """The learner's settings as the run has them: its base, and the adapters of its system's roles."""
    system = team_of(config)
    own = {
        name: replace(config.learn.role.get(name, RoleLearnConfig()), frozen=True) for name in frozen_adapters(system)
    }
    return replace(
        config.learn,
        model=config.model,
        dtype=config.dtype,
        roles=adapters_of(system),
        role=config.learn.role | own,
        seed=config.seed,
    )
