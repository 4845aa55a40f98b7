"""What lists and curves need of every action: an SQLite database in memory, with the indices they need.

A journal may be of a run that goes on, and is opened for reading only, so it can be given no index; and its rows carry
token ids that lists do not show. `refresh` takes what is new, then some of what is old, newest first: a page over a
large journal begins with its last steps at once, and the rest follows.
"""

from __future__ import annotations

import copy
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mappa.coach.matching import quality_of
from mappa.journal.codec import decode_observation, decode_verdict
from mappa.journal.schema import connect, has_table
from mappa.types import Evidence, ExecutionResult, Verdict
from mappa.view.suspects import suspicion

BATCH = 500
"""Actions taken in one go: other threads wait that long."""
_SPANS_PER_ACTION = 6

_TABLES = """
create table episodes (id text primary key, step integer, phase text, task text, kind text, state text,
    success integer, error text, began real, ended real);
create index episodes_of_task on episodes (task, step);
create index episodes_of_step on episodes (phase, step, state, task, success);
create table actions (id integer primary key, episode text, ordinal integer, phase text, step integer, task text,
    kind text, role text, turn integer, adapter text, score real, missing text, success integer, quality real,
    gap real, suspect text, tokens integer, truncated integer, tool integer, tool_error integer, digest integer);
create index actions_by_id on actions (phase, id);
create index actions_by_score on actions (phase, score, id) where score is not null;
create index actions_by_gap on actions (phase, gap, id) where gap is not null;
create index actions_suspected on actions (phase, id) where suspect is not null;
create index actions_by_role on actions (phase, role, score);
create index actions_by_task on actions (phase, task, score);
create index actions_by_adapter on actions (phase, adapter, score);
create index actions_by_step on actions (phase, step, role, kind, task, score, missing, success, tokens,
    truncated, tool, tool_error, digest);
create index actions_matched on actions (phase, role, kind, step, task, score, quality, success)
    where score is not null and quality is not null;
create table learned (source text primary key, tokens integer, advantage real, kl real, entropy real);
create table steps (step integer primary key, metrics text, time real);
create table spans (kind text, step integer, began real, ended real);
create index spans_by_end on spans (ended, began, kind);
create index spans_by_step on spans (kind, step, began, ended);
create table calls (replies integer, tokens integer, dollars real, time real);
create index calls_by_time on calls (time, replies, tokens, dollars);
create virtual table words using fts5 (text, content='');
"""
_CALLS = "select length(data) > 0, tokens, dollars, time from calls where rowid > ?"
_EPISODE = "select id, step, phase, task, kind, state, outcome ->> '$.success', error, began, ended from episodes"
_ACTIONS = """
select a.rowid, a.episode, a.ordinal, e.phase, e.step, e.task, e.kind, a.role, a.turn, a.adapter, a.finish, a.output,
    a.text, r.data, v.data, e.state
from actions a join episodes e on e.id = a.episode
    left join results r on r.episode = a.episode and r.ordinal = a.ordinal
    left join verdicts v on v.episode = a.episode and v.ordinal = a.ordinal
"""
_LEARNED = "select l.rowid, l.step, l.source, l.tokens, l.advantage, l.kl, l.entropy from learned l where l.rowid"
_SPANS = "select s.rowid, s.kind, e.step, s.began, s.ended from spans s left join episodes e on e.id = s.episode"


class Catalogue:
    """Of one journal. Any thread may ask; `refresh` is for one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises JournalError if there is no journal of this schema."""
        self.path = path
        self.changes = 0
        """Grows whenever a refresh found something new."""
        self.touched: dict[int, int] = {}
        """Step -> what `changes` was when something of it was last read."""
        with connect(path) as journal:
            learned = _Window(journal, "learned") if has_table(journal, "learned") else None
            self._read = _Read(_Window(journal, "actions"), _Window(journal, "spans"), learned)
        self._lock = threading.Lock()
        self._memory = sqlite3.connect(":memory:", check_same_thread=False)
        self._memory.executescript(_TABLES)

    def close(self) -> None:
        self._memory.close()

    def rows(self, sql: str, values: Sequence[object] | dict[str, object] = ()) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock:
            return self._memory.execute(sql, values).fetchall()

    @property
    def left(self) -> int:
        """Actions of the journal that are still to be read, about."""
        return self._read.actions.low

    def read_all(self) -> None:
        """Refresh until there is nothing left."""
        while self.refresh():
            pass

    def refresh(self) -> bool:
        """Take what the journal has anew, and a batch of what it had. True while there is more to take.

        Raises JournalError where it cannot be read; then nothing was taken, and all can be again.
        """
        before = copy.deepcopy(self._read)
        try:
            with connect(self.path) as journal, self._lock, self._memory:
                journal.execute("begin")  # one state of the journal throughout
                self._fresh: set[int] = set()
                found = self._take_episodes(journal)
                found += self._take_actions(journal)
                found += self._take_spans(journal)
                found += self._take_learned(journal)
                found += self._take_steps_and_calls(journal)
        except BaseException:
            self._read = before
            raise
        if found:
            self.changes += 1
            self.touched |= dict.fromkeys(self._fresh, self.changes)
        read = self._read
        return any(window.low > 0 for window in (read.actions, read.spans, read.learned) if window is not None)

    def _take_episodes(self, journal: sqlite3.Connection) -> int:
        """New ones, and those that were running: their rows alone are ever changed."""
        newest = _newest(journal, "episodes")
        rows = journal.execute(f"{_EPISODE} where rowid > ?", (self._read.episodes,)).fetchall()
        again = [row for id in self._read.running for row in journal.execute(f"{_EPISODE} where id = ?", (id,))]
        self._put("episodes", [*rows, *again])
        self._was_running, self._read.episodes = self._read.running, newest
        self._read.running = [row[0] for row in (*again, *rows) if row[5] == "running"]
        return len(rows) + len(self._was_running) - sum(row[5] == "running" for row in again)

    def _take_actions(self, journal: sqlite3.Connection) -> int:
        """Those of episodes that were running at the last look again: they may have got results and verdicts."""
        window, known = self._read.actions, (self._read.actions.low, self._read.actions.high)
        new, old = window.take(journal, f"{_ACTIONS} where a.rowid", BATCH)
        again = [
            row
            for episode in self._was_running
            for row in journal.execute(f"{_ACTIONS} where a.episode=? and a.rowid>=? and a.rowid<?", (episode, *known))
        ]
        self._put("actions", [_row(row) for row in (*new, *old, *again)])
        self._fresh |= {row[4] for row in (*new, *old, *again) if row[3] == "train"}
        # Words are kept once an episode has ended, since a row of theirs cannot be replaced.
        words = [(row[0], _words(row)) for row in (*new, *old, *again) if row[-1] != "running"]
        self._memory.executemany("insert into words (rowid, text) values (?,?)", words)
        return len(new) + len(old)

    def _take_spans(self, journal: sqlite3.Connection) -> int:
        new, old = self._read.spans.take(journal, f"{_SPANS} where s.rowid", _SPANS_PER_ACTION * BATCH)
        self._put("spans", [row[1:] for row in (*new, *old)])
        self._fresh |= {row[2] for row in (*new, *old) if row[2]}
        return len(new) + len(old)

    def _take_learned(self, journal: sqlite3.Connection) -> int:
        if self._read.learned is None:
            return 0
        new, old = self._read.learned.take(journal, _LEARNED, BATCH)
        self._put("learned", [row[2:] for row in (*old, *new)])
        self._fresh |= {row[1] for row in (*new, *old)}
        return len(new) + len(old)

    def _take_steps_and_calls(self, journal: sqlite3.Connection) -> int:
        # A step that was run again after a resume is written anew, with its new time.
        steps = journal.execute(
            "select step, metrics, time from steps where time > ?", (self._read.steps_time,)
        ).fetchall()
        calls = journal.execute(_CALLS, (self._read.calls,)).fetchall()
        self._put("steps", steps)
        self._fresh |= {row[0] for row in steps}
        self._put("calls", calls)
        self._read.steps_time = max([self._read.steps_time, *(row[2] for row in steps)])
        self._read.calls = _newest(journal, "calls")
        return len(steps) + len(calls)

    def _put(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            marks = ",".join("?" * len(rows[0]))
            self._memory.executemany(f"insert or replace into {table} values ({marks})", rows)


class _Window:
    """Row ids [low, high) of a table that were read: it grows upwards by all that is new, downwards by batches."""

    def __init__(self, journal: sqlite3.Connection, table: str) -> None:
        self.low = self.high = _newest(journal, table) + 1

    def take(self, journal: sqlite3.Connection, sql: str, batch: int) -> tuple[list[Any], list[Any]]:
        """New rows and a batch of old ones. `sql` ends where its row id, the first column too, is to be bounded."""
        new = journal.execute(f"{sql} >= ?", (self.high,)).fetchall()
        first = max(0, self.low - batch)
        old = journal.execute(f"{sql} >= ? and {sql.rpartition('where ')[2]} < ?", (first, self.low)).fetchall()
        self.low, self.high = first, max([self.high, *(row[0] + 1 for row in new)])
        return new, old


@dataclass
class _Read:
    """What of the journal was read."""

    actions: _Window
    spans: _Window
    learned: _Window | None
    episodes: int = 0
    """The newest row."""
    calls: int = 0
    running: list[str] = field(default_factory=list)
    """Episodes whose rows are still changed."""
    steps_time: float = 0.0


def _newest(journal: sqlite3.Connection, table: str) -> int:
    return int(journal.execute(f"select coalesce(max(rowid), 0) from {table}").fetchone()[0])


def _row(row: Sequence[Any]) -> tuple[object, ...]:
    """A row of `actions` from one of the journal's."""
    id, episode, ordinal, phase, step, task, kind, role, turn, adapter, finish, output, text, _, _, _ = row
    execution, evidence, verdict = _known(row)
    score = None if verdict is None else verdict.score
    quality = None if evidence is None else quality_of(evidence)
    return (
        id,
        episode,
        ordinal,
        phase,
        step,
        task,
        kind,
        role,
        turn,
        adapter,
        score,
        None if verdict is None else verdict.missing,
        None if evidence is None else evidence.success,
        quality,
        None if score is None or quality is None else abs(score / 10 - quality),
        suspicion(text, None if verdict is None else verdict.evidence, score),
        (len(output) - 1) // (2 if output[:1] == b"H" else 4),
        finish == "length",
        execution is not None,
        None if execution is None else execution.outcome != "ok",
        hash(output),
    )


def _words(row: Sequence[Any]) -> str:
    """What a search looks in: what was written, what the tool printed, what was found wrong and said of it."""
    execution, evidence, verdict = _known(row)
    parts = [row[12]]
    if execution is not None:
        parts += [execution.stdout, execution.stderr, execution.exception]
    parts += [evidence.fault if evidence is not None else None, verdict.reason if verdict is not None else None]
    return "\n".join(part for part in parts if part)


def _known(row: Sequence[Any]) -> tuple[ExecutionResult | None, Evidence | None, Verdict | None]:
    observation = None if row[13] is None else decode_observation(row[13])
    verdict = None if row[14] is None else decode_verdict(row[14])
    if observation is None:
        return None, None, verdict
    return observation.execution, observation.evidence, verdict
