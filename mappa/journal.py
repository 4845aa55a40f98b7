"""The journal: one SQLite file per run that holds everything that was paid for, written before it is used.

    meta        schema, config
    episodes    one row per episode: task, seed, phase ('train', 'base', 'trained'), outcome or error
    actions     one row per action, msgpack of `types.Action` (token ids and log-probs included), without its verdict
    verdicts    one row per scored action
    publishes   adapter versions
    steps       one row per update with its metrics
    calls       one row per reply that a coach bought, by the key of all it depends on; kept when steps are forgotten

Writing is done by a thread of its own, in batches: `add_*` only queue, `flush` waits until all that was queued is on
disk. A failed write is raised by the next call.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from mappa.errors import JournalError
from mappa.types import Action, Episode, Outcome, Verdict

SCHEMA = 1

_TABLES = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists episodes (
    id text primary key, step integer not null, phase text not null, task text not null, kind text not null,
    seed integer not null, outcome text, error text, time real not null);
create table if not exists actions (
    episode text not null, ordinal integer not null, role text not null, turn integer not null, adapter text not null,
    data blob not null, time real not null, primary key (episode, ordinal));
create table if not exists verdicts (
    episode text not null, ordinal integer not null, score real, reason text not null, data blob not null,
    time real not null, primary key (episode, ordinal));
create table if not exists publishes (adapter text primary key, role text not null, version integer not null,
    time real not null);
create table if not exists steps (step integer primary key, metrics text not null, time real not null);
create table if not exists calls (key text primary key, tokens integer not null, dollars real not null,
    data blob not null, time real not null);
"""

_Statement = tuple[str, tuple[object, ...]]
OnDisk = Callable[[Exception | None], None]
_action_encoder = msgspec.msgpack.Encoder()
_action_decoder = msgspec.msgpack.Decoder(Action)
_verdict_decoder = msgspec.msgpack.Decoder(Verdict)


class Journal:
    """An open journal. Any thread may add; one thread writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[_Statement | threading.Event | OnDisk | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = _open(path)
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin_episode(self, episode: Episode, phase: str) -> None:
        self._put(
            "insert or replace into episodes values (?,?,?,?,?,?,null,null,?)",
            (episode.id, episode.step, phase, episode.task, episode.kind, episode.seed, time.time()),
        )

    def add_action(self, episode: str, ordinal: int, action: Action) -> None:
        """Journal what was generated, executed and measured. A later call with the same place replaces it."""
        bare = msgspec.structs.replace(action, verdict=None)
        self._put(
            "insert or replace into actions values (?,?,?,?,?,?,?)",
            (episode, ordinal, action.role, action.turn, action.adapter, _action_encoder.encode(bare), time.time()),
        )

    def add_verdict(self, episode: str, ordinal: int, verdict: Verdict) -> None:
        self._put(
            "insert or replace into verdicts values (?,?,?,?,?,?)",
            (episode, ordinal, verdict.score, verdict.reason, _action_encoder.encode(verdict), time.time()),
        )

    def end_episode(self, episode: Episode) -> None:
        outcome = msgspec.json.encode(episode.outcome).decode() if episode.outcome is not None else None
        self._put("update episodes set outcome=?, error=? where id=?", (outcome, episode.error, episode.id))

    def add_publish(self, adapter: str, role: str, version: int) -> None:
        self._put("insert or replace into publishes values (?,?,?,?)", (adapter, role, version, time.time()))

    def add_step(self, step: int, metrics: str) -> None:
        self._put("insert or replace into steps values (?,?,?)", (step, metrics, time.time()))

    def add_call(self, key: str, tokens: int, dollars: float, data: bytes, on_disk: OnDisk) -> None:
        """Keep what a coach bought. `on_disk` is called from the writing thread once it is there, with None, or with
        the error that kept it from getting there."""
        self._put("insert or replace into calls values (?,?,?,?,?)", (key, tokens, dollars, data, time.time()))
        self._queue.put(on_disk)

    def forget_after(self, step: int) -> None:
        """Drop what belongs to steps above `step`: a resumed run does them again."""
        for table in ("actions", "verdicts"):
            self._put(
                f"delete from {table} where episode in (select id from episodes where phase='train' and step>?)",
                (step,),
            )
        self._put("delete from episodes where phase='train' and step>?", (step,))
        self._put("delete from steps where step>?", (step,))
        self.flush()

    def flush(self) -> None:
        """Return when everything added so far is on disk."""
        written = threading.Event()
        self._raise()
        self._queue.put(written)
        written.wait()
        self._raise()

    def close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._connection.close()
        self._raise()

    def _put(self, sql: str, values: tuple[object, ...]) -> None:
        self._raise()
        self._queue.put((sql, values))

    def _raise(self) -> None:
        if self._failure is not None:
            raise JournalError(
                f"{self.path} cannot be written: {self._failure}; free disk space or fix its permissions, and run again"
            ) from self._failure

    def _write(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            try:
                with self._connection:
                    for item in batch:
                        if isinstance(item, tuple) and self._failure is None:
                            self._connection.execute(*item)
            except sqlite3.Error as error:
                self._failure = error
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
                elif callable(item):
                    item(self._failure)
                elif item is None:
                    running = False


def read_episodes(path: Path, phase: str = "train") -> Iterator[Episode]:
    """Finished episodes of one phase with their actions and verdicts, in the order they began."""
    connection = _connect(path)
    try:
        rows = connection.execute(
            "select id, task, kind, seed, step, outcome, error from episodes where phase=? order by rowid", (phase,)
        ).fetchall()
        for id, task, kind, seed, step, outcome, error in rows:
            yield Episode(
                id=id,
                task=task,
                kind=kind,
                seed=seed,
                step=step,
                error=error,
                actions=tuple(_actions(connection, id)),
                outcome=msgspec.json.decode(outcome, type=Outcome) if outcome else None,
            )
    finally:
        connection.close()


def read_calls(path: Path) -> dict[str, tuple[int, float]]:
    """Tokens and dollars of every kept reply by its key."""
    with contextlib.closing(_connect(path)) as connection:
        rows = connection.execute("select key, tokens, dollars from calls").fetchall()
    return {key: (tokens, dollars) for key, tokens, dollars in rows}


def read_call(path: Path, key: str) -> bytes:
    """One kept reply. Raises KeyError where there is none."""
    with contextlib.closing(_connect(path)) as connection:
        found = connection.execute("select data from calls where key=?", (key,)).fetchone()
    if found is None:
        raise KeyError(key)
    data: bytes = found[0]
    return data


def _actions(connection: sqlite3.Connection, episode: str) -> Iterator[Action]:
    for data, verdict in connection.execute(
        "select a.data, v.data from actions a left join verdicts v using (episode, ordinal) "
        "where a.episode=? order by a.ordinal",
        (episode,),
    ):
        action = _action_decoder.decode(data)
        yield action if verdict is None else msgspec.structs.replace(action, verdict=_verdict_decoder.decode(verdict))


def _connect(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise JournalError(f"no journal at {path}; give the folder of a run")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        connection.executescript(_TABLES)
        found = connection.execute("select value from meta where key='schema'").fetchone()
        if found is None:
            connection.execute("insert into meta values ('schema', ?)", (str(SCHEMA),))
            connection.commit()
    except sqlite3.Error as error:
        raise JournalError(
            f"{path} cannot be opened as a journal: {error}; move it away and run with --fresh"
        ) from error
    if found is not None and found[0] != str(SCHEMA):
        raise JournalError(
            f"{path} was written with schema {found[0]}, this version writes {SCHEMA}; run with --fresh, or use the "
            "version that wrote it"
        )
    return connection
