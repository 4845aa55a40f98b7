"""The tables of a journal, and opening the file that holds them.

    meta        schema, config (JSON)
    episodes    one row per episode: task, seed, step, phase ('train', 'base', 'trained') and its state
    actions     one row per generation: exact ids and log-probs as blobs (see codec)
    results     one row per action whose code was run and whose work was measured
    verdicts    one row per scored action
    publishes   adapter versions
    steps       one row per update with its metrics
    reviews     one row per step with what the watch over the coach is rebuilt from
    learned     one row per action that was learned from: the advantages of its tokens, and what the learner saw of it
    spans       what happened when, for the timeline
    calls       one row per reply that a coach bought, by the key of all it depends on; and, without data and by a key
                of its own, per request that left none and was billed, or may have been

An episode's state is 'running' until it is 'done', 'cut' at its deadline or 'lost' with an error. Rows of actions,
results and verdicts are written once and never replaced: a second one for the same place is an error.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from mappa.config import Config, config_from, differences
from mappa.errors import ConfigError, JournalError

SCHEMA = 2

_TABLES = """
create table if not exists meta (key text primary key, value text not null);
create table if not exists episodes (
    id text primary key, step integer not null, phase text not null, task text not null, kind text not null,
    seed integer not null, state text not null, outcome text, error text, began real not null, ended real);
create index if not exists episodes_of_step on episodes (phase, step);
create table if not exists actions (
    episode text not null, ordinal integer not null, role text not null, turn integer not null, adapter text not null,
    finish text not null, repaired integer not null, prompt blob not null, output blob not null,
    logprobs blob not null, text text not null, time real not null, primary key (episode, ordinal));
create table if not exists results (
    episode text not null, ordinal integer not null, data blob not null, time real not null,
    primary key (episode, ordinal));
create table if not exists verdicts (
    episode text not null, ordinal integer not null, score real, data blob not null, time real not null,
    primary key (episode, ordinal));
create table if not exists publishes (adapter text primary key, role text not null, version integer not null,
    time real not null);
create table if not exists steps (step integer primary key, metrics text not null, time real not null);
create table if not exists reviews (step integer primary key, data blob not null, time real not null);
create table if not exists learned (source text primary key, step integer not null, tokens integer not null,
    advantage real not null, kl real, entropy real, advantages blob not null, time real not null);
create table if not exists spans (kind text not null, episode text not null, role text not null, turn integer not null,
    began real not null, ended real not null);
create table if not exists calls (key text primary key, tokens integer not null, dollars real not null,
    data blob not null, time real not null);
"""


def open_journal(path: Path, config: Config | None) -> sqlite3.Connection:
    """A connection for the one writer. Raises JournalError for no journal, or one of another schema or config."""
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")  # a commit survives the process, at once
        known = connection.execute("select 1 from sqlite_master where name='meta'").fetchone()
        if known is not None:
            check(connection, path, config)
        connection.executescript(_TABLES)
        if known is None:
            stamp = {"schema": str(SCHEMA), "config": "" if config is None else msgspec.json.encode(config).decode()}
            connection.executemany("insert into meta values (?,?)", stamp.items())
        connection.commit()
    except sqlite3.Error as error:
        raise JournalError(
            f"{path} cannot be opened as a journal: {error}; move it away and run with --fresh"
        ) from error
    return connection


@contextmanager
def connect(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, and is closed at the end. Raises JournalError if there is no journal of this
    schema, and for damage that is met while it is read."""
    if not path.is_file():
        raise JournalError(f"no journal at {path}; give the folder of a run")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            check(connection, path, None)
            yield connection
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise JournalError(
            f"{path} cannot be read as a journal: {error}; if it is damaged, move it away and run with --fresh"
        ) from error


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether a journal has a table: those of before there was one are read all the same."""
    return connection.execute("select 1 from sqlite_master where name=?", (name,)).fetchone() is not None


def check(connection: sqlite3.Connection, path: Path, config: Config | None) -> None:
    """Raise JournalError unless the file has this schema and, where one is given, this config."""
    stamp = dict(connection.execute("select key, value from meta").fetchall())
    found = stamp.get("schema")
    if found != str(SCHEMA):
        way = "run with --fresh, or use" if config is not None else "look at it with"
        raise JournalError(
            f"{path} was written with schema {found}, this version knows {SCHEMA}; {way} the version that wrote it"
        )
    if config is None or not stamp.get("config"):
        return
    try:
        changed = differences(config_from(msgspec.json.decode(stamp["config"]), where=str(path)), config)
    except ConfigError as error:
        raise JournalError(f"{path} was written by another version of mappa ({error}); run with --fresh") from error
    if changed:
        listed = "\n  ".join(changed)
        raise JournalError(f"{path} belongs to another config:\n  {listed}\nrun with --fresh, or set name=OTHER")
