"""summary.json: what a run came to, in one file that is either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct, field

from mappa.errors import JournalError
from mappa.observe.evaluation import EvaluationResult
from mappa.observe.speed import Speed

FILE_NAME = "summary.json"


class Summary(Struct, frozen=True, kw_only=True):
    """A finished run.

    >>> Summary(name="quickstart", seed=0, base=..., trained=..., steps=10, episodes=180, train_minutes=8.1,
    ...         adapters={"modeler": "runs/quickstart/adapters/modeler"})
    """

    name: str
    seed: int
    base: EvaluationResult
    """Sampled episodes with the adapters off."""
    trained: EvaluationResult
    base_greedy: EvaluationResult | None = None
    trained_greedy: EvaluationResult | None = None
    steps: int
    episodes: int
    """Training episodes, lost ones included."""
    lost: int = 0
    train_minutes: float
    adapters: dict[str, str]
    """Folder in PEFT format by role."""
    speed: Speed = field(default_factory=Speed)
    peak_memory_gb: float = 0.0
    unsafe: bool = False
    """Model-written code ran without isolation."""


def write_summary(folder: Path, summary: Summary) -> Path:
    """Write summary.json into the run's folder, whole or not at all. Returns its path."""
    path = folder / FILE_NAME
    replace_file(path, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return path


def read_summary(folder: Path) -> Summary | None:
    """The summary of a finished run, None where the run has not finished. Raises JournalError on a damaged one."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except msgspec.DecodeError as error:
        raise JournalError(
            f"{path} is not a run's summary ({error}); remove it and run the same command again"
        ) from None


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, on disk, then rename: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        building.rename(path)
    finally:
        building.unlink(missing_ok=True)
