"""Writing a journal: a thread of its own takes what is queued and commits it in batches.

`add_*` only queue, and do not wake the thread: it looks up when somebody waits, or much was queued, or now and then.
`written` (on an event loop) and `flush` (off it) return when all that was queued before is on disk,
as a commit: it outlives this process, whatever ends it. A write that failed is raised by every later call.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType

import msgspec
from msgspec import Struct

from mappa.config import Config
from mappa.errors import JournalError
from mappa.journal.codec import Observation, Record, Span, State, encode, pack_ids, pack_logprobs
from mappa.journal.reader import read_records
from mappa.journal.schema import open_journal
from mappa.types import Action, Episode, Verdict

WINDOW = 0.02
"""Seconds between commits, at least."""
_BATCH = 1024
_IDLE = 0.5
"""Seconds after which what nobody waits for is written as well."""


class _Write(Struct, frozen=True, gc=False):
    sql: str
    values: Callable[[], Sequence[object]]
    """Packing is left to the writing thread."""


class _Waiter(Struct, frozen=True):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Journal:
    """An open journal. Any thread may add; one thread writes."""

    def __init__(self, path: Path, config: Config | None = None, *, window: float = WINDOW) -> None:
        """Open or make the file. With a config, one that was written for another is refused. Raises JournalError.

        Commits are at least `window` seconds apart: under load, many who wait share one.
        """
        self.path = path
        self._window = window
        self.pending = 0
        """Calls of `written` that have not returned."""
        self._queue: deque[_Write | _Waiter | threading.Event | None] = deque()
        self._wanted = threading.Event()
        self._failure: Exception | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = open_journal(path, config)
        self._thread = threading.Thread(target=self._serve, name="journal", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin_episode(self, episode: Episode, phase: str) -> None:
        """One that is known already stays as it is."""
        row = (episode.id, episode.step, phase, episode.task, episode.kind, episode.seed, time.time())
        self._put("insert or ignore into episodes values (?,?,?,?,?,?,'running',null,null,?,null)", lambda: row)

    def add_action(self, episode: str, ordinal: int, action: Action) -> None:
        """What was generated. Its execution, evidence and verdict have rows of their own."""
        now = time.time()
        self._put(
            "insert into actions values (?,?,?,?,?,?,?,?,?,?,?,?)",
            lambda: (
                episode,
                ordinal,
                action.role,
                action.turn,
                action.adapter,
                action.finish_reason,
                action.repaired,
                pack_ids(action.prompt_ids),
                pack_ids(action.output_ids),
                pack_logprobs(action.logprobs),
                action.text,
                now,
            ),
        )

    def add_result(self, episode: str, ordinal: int, observation: Observation) -> None:
        now = time.time()
        self._put("insert into results values (?,?,?,?)", lambda: (episode, ordinal, encode(observation), now))

    def add_verdict(self, episode: str, ordinal: int, verdict: Verdict) -> None:
        now = time.time()
        self._put(
            "insert into verdicts values (?,?,?,?,?)", lambda: (episode, ordinal, verdict.score, encode(verdict), now)
        )

    def end_episode(self, episode: Episode) -> None:
        state: State = "lost" if episode.error is not None else "cut" if episode.cut else "done"
        outcome = None if episode.outcome is None else msgspec.json.encode(episode.outcome).decode()
        row = (state, outcome, episode.error, time.time(), episode.id)
        self._put("update episodes set state=?, outcome=?, error=?, ended=? where id=?", lambda: row)

    def add_publish(self, adapter: str, role: str, version: int) -> None:
        row = (adapter, role, version, time.time())
        self._put("insert or replace into publishes values (?,?,?,?)", lambda: row)

    def add_step(self, step: int, metrics: str) -> None:
        row = (step, metrics, time.time())
        self._put("insert or replace into steps values (?,?,?)", lambda: row)

    def add_review(self, step: int, data: bytes) -> None:
        """What the watch over the coach kept of a step. One that is known already stays as it is."""
        row = (step, data, time.time())
        self._put("insert or ignore into reviews values (?,?,?)", lambda: row)

    def add_learned(
        self, step: int, source: str, advantages: Sequence[float], *, kl: float | None, entropy: float | None
    ) -> None:
        """What the learner made of an action, EPISODE/ROLE/TURN; of a step that is run again, what it makes now."""
        now, mean = time.time(), fmean(advantages)
        self._put(
            "insert or replace into learned values (?,?,?,?,?,?,?,?)",
            lambda: (source, step, len(advantages), mean, kl, entropy, pack_logprobs(advantages), now),
        )

    def add_span(self, span: Span) -> None:
        self._put("insert into spans values (?,?,?,?,?,?)", lambda: msgspec.structs.astuple(span))

    def add_call(self, key: str, tokens: int, dollars: float, data: bytes) -> None:
        """What a coach bought, under the key of all that the reply depends on; without data: what it paid for none."""
        row = (key, tokens, dollars, data, time.time())
        self._put("insert or replace into calls values (?,?,?,?,?)", lambda: row)

    def recall(self, phase: str, step: int) -> dict[str, Record]:
        """The episodes of a step as far as they were journaled, by id. Not for an event loop: it reads the disk."""
        self.flush()
        return {record.episode.id: record for record in read_records(self.path, phase, step=step)}

    async def written(self) -> None:
        """Return when everything added so far is on disk."""
        self._raise()
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future())
        self.pending += 1
        self._queue.append(waiter)
        self._want()
        try:
            await waiter.future
        finally:
            self.pending -= 1
        self._raise()

    def flush(self) -> None:
        """As `written`, for a thread that may wait."""
        written = threading.Event()
        self._raise()
        self._queue.append(written)
        self._want()
        written.wait()
        self._raise()

    def close(self) -> None:
        if self._thread.is_alive():
            self._queue.append(None)
            self._want()
            self._thread.join()
        self._connection.close()
        self._raise()

    def _put(self, sql: str, values: Callable[[], Sequence[object]]) -> None:
        if self._failure is not None:
            self._raise()
        self._queue.append(_Write(sql, values))
        if len(self._queue) >= _BATCH:
            self._want()

    def _want(self) -> None:
        """Have the thread look at the queue, to which the wish was added before."""
        if not self._wanted.is_set():
            self._wanted.set()

    def _raise(self) -> None:
        if self._failure is not None:
            raise JournalError(
                f"{self.path} cannot be written: {self._failure}; free disk space or fix its permissions, and run again"
            ) from self._failure

    def _serve(self) -> None:
        running, due = True, 0.0
        while running:
            self._wanted.wait(_IDLE)
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            due = time.monotonic() + self._window
            self._wanted.clear()  # before the look: what is added after it sets it again
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH))]
            if self._queue:
                self._wanted.set()
            try:
                self._commit([item for item in batch if isinstance(item, _Write)])
            except (sqlite3.Error, OverflowError, TypeError, ValueError) as error:
                self._failure = error
            _wake([item for item in batch if isinstance(item, _Waiter)])
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
                elif item is None:
                    running = False

    def _commit(self, writes: Sequence[_Write]) -> None:
        """All of them or none. After a failure nothing is written: what follows may hang on what is missing."""
        if writes and self._failure is None:
            with self._connection:
                for write in writes:
                    self._connection.execute(write.sql, write.values())


def _wake(waiters: Sequence[_Waiter]) -> None:
    """One message per loop, not one per waiter: each costs a system call."""
    for loop in {id(waiter.loop): waiter.loop for waiter in waiters}.values():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, [waiter.future for waiter in waiters if waiter.loop is loop])


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
