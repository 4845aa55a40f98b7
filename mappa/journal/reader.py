"""Reading a journal: what `recall` continues from, and what tools show of a run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mappa.config import Config, config_from
from mappa.errors import JournalError
from mappa.journal.codec import (
    Entry,
    Record,
    Span,
    decode_observation,
    decode_verdict,
    unpack_ids,
    unpack_logprobs,
)
from mappa.journal.schema import connect, has_table
from mappa.types import Action, Episode, Outcome

_COLUMNS = "id, task, kind, seed, step, outcome, error, state"
_EPISODES = f"select {_COLUMNS} from episodes where phase=?"
_ENTRIES = """
select a.ordinal, a.role, a.turn, a.adapter, a.finish, a.repaired, a.prompt, a.output, a.logprobs, a.text,
    r.data, v.data
from actions a left join results r using (episode, ordinal) left join verdicts v using (episode, ordinal)
where a.episode=? order by a.ordinal
"""


def read_episodes(path: Path, phase: str = "train", *, step: int | None = None) -> Iterator[Episode]:
    """Ended episodes of one phase, or of one step of it, with their actions and verdicts, in the order they began."""
    for record in read_records(path, phase, step=step):
        if record.state != "running":
            yield record.episode


def read_records(path: Path, phase: str, *, step: int | None = None) -> Iterator[Record]:
    """All episodes of one phase, or of one step of it, in the order they began, unfinished ones as far as they got."""
    with connect(path) as connection:
        rows = connection.execute(
            f"{_EPISODES}{'' if step is None else ' and step=?'} order by rowid",
            (phase,) if step is None else (phase, step),
        ).fetchall()
        for row in rows:
            yield _record(connection, row)


def read_record(path: Path, id: str) -> tuple[str, Record]:
    """One episode as far as it was journaled, and its phase. Raises KeyError where there is none."""
    with connect(path) as connection:
        row = connection.execute(f"select phase, {_COLUMNS} from episodes where id=?", (id,)).fetchone()
        if row is None:
            raise KeyError(id)
        return row[0], _record(connection, row[1:])


def read_action(path: Path, episode: str, ordinal: int) -> Action:
    """One action. Raises KeyError where there is none."""
    found = read_record(path, episode)[1].entries.get(ordinal)
    if found is None:
        raise KeyError(f"{episode}/{ordinal}")
    return found.action


def read_spans(path: Path) -> list[Span]:
    """The run's timeline, in no particular order."""
    with connect(path) as connection:
        rows = connection.execute("select kind, episode, role, turn, began, ended from spans").fetchall()
    return [Span(*row) for row in rows]


def read_calls(path: Path) -> dict[str, tuple[int, float]]:
    """Tokens and dollars of every reply that a coach bought, by its key, and of requests that left none."""
    with connect(path) as connection:
        rows = connection.execute("select key, tokens, dollars from calls").fetchall()
    return {key: (tokens, dollars) for key, tokens, dollars in rows}


def read_reviews(path: Path) -> dict[int, bytes]:
    """What the watch over the coach kept, by step, in order."""
    with connect(path) as connection:
        if not has_table(connection, "reviews"):
            return {}  # a run of before there was a watch
        return dict(connection.execute("select step, data from reviews order by step").fetchall())


def read_advantages(path: Path, source: str) -> tuple[float, ...] | None:
    """Of each token of an action, EPISODE/ROLE/TURN, as the learner had them; None where it did not learn from it."""
    with connect(path) as connection:
        if not has_table(connection, "learned"):
            return None
        found = connection.execute("select advantages from learned where source=?", (source,)).fetchone()
    return None if found is None else unpack_logprobs(found[0])


def read_call(path: Path, key: str) -> bytes:
    """One of them. Raises KeyError where there is none."""
    with connect(path) as connection:
        found = connection.execute("select data from calls where key=?", (key,)).fetchone()
    if found is None:
        raise KeyError(key)
    data: bytes = found[0]
    return data


def read_config(path: Path) -> Config:
    """The config of the run that a journal belongs to. Raises JournalError if it keeps none."""
    with connect(path) as connection:
        found = connection.execute("select value from meta where key='config'").fetchone()
    if found is None or not found[0]:
        raise JournalError(f"{path} belongs to no training run: it keeps no config")
    return config_from(msgspec.json.decode(found[0]), where=str(path))


def _record(connection: sqlite3.Connection, row: Sequence[Any]) -> Record:
    id, task, kind, seed, step, outcome, error, state = row
    entries = {found[0]: _entry(id, found[1:]) for found in connection.execute(_ENTRIES, (id,))}
    episode = Episode(
        id=id,
        task=task,
        kind=kind,
        seed=seed,
        step=step,
        actions=tuple(entry.action for entry in entries.values()),
        outcome=msgspec.json.decode(outcome, type=Outcome) if outcome else None,
        error=error,
        cut=state == "cut",
    )
    return Record(episode=episode, state=state, entries=entries)


def _entry(episode: str, row: Sequence[Any]) -> Entry:
    try:
        return _unpacked(row)
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise JournalError(
            f"the journal's record of episode {episode} is damaged: {error}; move the journal away and run with --fresh"
        ) from error


def _unpacked(row: Sequence[Any]) -> Entry:
    role, turn, adapter, finish, repaired, prompt, output, logprobs, text, observed, verdict = row
    observation = None if observed is None else decode_observation(observed)
    action = Action(
        role=role,
        turn=turn,
        adapter=adapter,
        prompt_ids=unpack_ids(prompt),
        output_ids=unpack_ids(output),
        logprobs=unpack_logprobs(logprobs),
        finish_reason=finish,
        text=text,
        execution=None if observation is None else observation.execution,
        evidence=None if observation is None else observation.evidence,
        verdict=None if verdict is None else decode_verdict(verdict),
        repaired=bool(repaired),
    )
    return Entry(action=action, observation=observation)
