"""What the server knows of sessions, models and saved weights, on disk: it is all there again after a restart.

    state/
        state.sqlite                         the records below
        weights/MODEL/KIND/NAME/             a saved model (see checkpoint.py)

A model's own weights are as durable as its client makes them: what was trained since the last save is lost with the
process, and the model says so instead of going on from older weights.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from mappa.errors import DiskError
from mappa.serve.errors import UserError

Kind = Literal["weights", "sampler_weights"]
_PATH = re.compile(r"tinker://(?P<model>[^/]+)/(?P<kind>weights|sampler_weights)/(?P<name>[^/]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Record(Struct, frozen=True, kw_only=True):
    id: str


class Session(Record, frozen=True, kw_only=True):
    """A client, from create_session to its end or until it has been silent for too long."""

    created: float
    metadata: dict[str, Any] = {}
    ended: str = ""


class ModelRecord(Record, frozen=True, kw_only=True):
    """A model and how to have it back."""

    session: str
    rank: int
    seed: int
    attention: bool = True
    mlp: bool = True
    created: float
    used: float
    metadata: dict[str, Any] = {}
    next_seq: int = 1
    """The next request in the client's order."""
    base: str = ""
    """The saved weights it was last equal to; empty: fresh from its seed."""
    optimizer: bool = True
    """Whether the optimiser's state of those came with them."""
    unsaved: bool = False
    """Whether it has been trained since."""
    inflight: str = ""
    """The saved weights that its inflight samplers use."""


class Checkpoint(Record, frozen=True, kw_only=True):
    """Saved weights; the id is their path, tinker://MODEL/KIND/NAME."""

    model: str
    kind: Kind
    rank: int
    attention: bool
    mlp: bool
    created: float
    expires: float | None = None
    size: int = 0
    metadata: dict[str, str] = {}
    ephemeral: bool = False


class SamplerRecord(Record, frozen=True, kw_only=True):
    """A sampling session: fixed weights, those of a model's inflight target, or the base."""

    session: str
    path: str = ""
    inflight: str = ""
    """The model whose inflight weights it follows."""
    clients: int = 1


_KINDS: tuple[type[Record], ...] = (Session, ModelRecord, Checkpoint, SamplerRecord)
R = TypeVar("R", bound=Record)


class State:
    """Records by type and id: in memory, and on disk before a change is visible. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._records: dict[type[Record], dict[str, Any]] = {kind: {} for kind in _KINDS}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._disk = sqlite3.connect(
                folder / "state.sqlite", timeout=1, check_same_thread=False, isolation_level=None
            )
            self._disk.execute("pragma journal_mode = wal")
            self._disk.execute("pragma locking_mode = exclusive")
            self._disk.execute(
                "create table if not exists records (kind text, id text, value blob, primary key (kind, id))"
            )
        except (OSError, sqlite3.Error) as error:
            raise DiskError(f"the state in {folder} cannot be used: {error}; does another server use it?") from None
        for kind in _KINDS:
            for (value,) in self._disk.execute("select value from records where kind = ?", (kind.__name__,)):
                record = msgspec.json.decode(value, type=kind)
                self._records[kind][record.id] = record

    def all(self, kind: type[R]) -> list[R]:
        return list(self._records[kind].values())

    def find(self, kind: type[R], id: str) -> R | None:
        return self._records[kind].get(id)

    def put(self, record: Record) -> None:
        """Add a record, or replace the one of its id."""
        with self._lock:
            self._write(record)

    def update(self, kind: type[R], id: str, **changes: Any) -> None:
        """Change fields of a record that is there."""
        with self._lock:
            self._write(replace(self._records[kind][id], **changes))

    def remove(self, record: Record) -> None:
        with self._lock:
            self._disk.execute("delete from records where kind = ? and id = ?", (type(record).__name__, record.id))
            self._records[type(record)].pop(record.id, None)

    def close(self) -> None:
        self._disk.close()

    def place(self, path: str) -> Path:
        """The folder of saved weights. Raises UserError for what is no path of ours."""
        found = _PATH.fullmatch(path)
        if found is None or ".." in path:
            raise UserError(f"{path!r} is not of the form tinker://MODEL/weights/NAME or .../sampler_weights/NAME")
        return self.folder / "weights" / found["model"] / found["kind"] / found["name"]

    def checkpoint(self, path: str) -> Checkpoint:
        """Raises UserError for weights that are not here (any more)."""
        found = self.find(Checkpoint, path)
        if found is None:
            raise UserError(f"no weights are saved as {path!r}; they may have expired")
        return found

    def _write(self, record: Record) -> None:
        value = msgspec.json.encode(record)
        self._disk.execute("insert or replace into records values (?, ?, ?)", (type(record).__name__, record.id, value))
        self._records[type(record)][record.id] = record


def weights_path(model: str, kind: Kind, name: str) -> str:
    """`tinker://MODEL/KIND/NAME`. Raises UserError for a name that could be anything but one folder."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot name weights: letters, digits, '.', '_' and '-', a letter or digit first")
    return f"tinker://{model}/{kind}/{name}"
