"""Taking requests in: each gets a future, and those of one model are begun in the order of their numbers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from mappa.errors import MappaError
from mappa.serve.errors import Refused, UserError
from mappa.serve.futures import Answer, Futures
from mappa.serve.state import ModelRecord, State

_log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[Any]]
"""Begins a request; what it comes to is an Answer, or what is sent as JSON."""


class Intake:
    """`futures` holds what became of the requests."""

    def __init__(self, state: State, keep: float) -> None:
        self.futures = Futures(keep)
        self._state = state
        self._turns: dict[str, _Turns] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, id: str, work: Work) -> dict[str, Any]:
        """Begin a request at once. One that is known by its id was sent again, and has its future already."""
        if id not in self.futures:
            self.futures.open(id)
            self._spawn(self._finish(id, work))
        return {"request_id": id}

    async def in_turn(self, record: ModelRecord, seq: int, work: Work) -> dict[str, Any]:
        """Begin a model's request when all with lower numbers have been. A number that was seen before is a request
        sent again."""
        turns = self._turns.setdefault(record.id, _Turns(record.next_seq))
        request = f"{record.id}:{seq}"
        answer = {"request_id": request, "model_id": record.id}
        if seq < turns.next or seq in turns.waiting:
            return answer
        self.futures.open(request)
        if turns.take(seq, lambda: self._spawn(self._finish(request, work))):
            await asyncio.to_thread(self._state.update, ModelRecord, record.id, next_seq=turns.next, used=time.time())
        return answer

    def end(self, model: str, why: str) -> None:
        """Fail what still waits for its turn."""
        turns = self._turns.pop(model, None)
        for seq in turns.waiting if turns is not None else ():
            self.futures.fail(f"{model}:{seq}", why, "user")

    async def _finish(self, id: str, work: Work) -> None:
        try:
            found = await work()
        except (UserError, Refused) as error:
            self.futures.fail(id, str(error), "user")
        except MappaError as error:
            self.futures.fail(id, str(error), "server")
        except Exception as error:  # noqa: BLE001 - else its client would wait for ever
            _log.exception("request %s failed", id)
            self.futures.fail(id, f"the server failed at this: {type(error).__name__}: {error}", "server")
        else:
            self.futures.resolve(id, found if isinstance(found, Answer) else Answer(msgspec.json.encode(found)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Turns:
    """The order of one model's requests: numbers may arrive out of it, and are begun in it."""

    def __init__(self, next: int) -> None:
        self.next = next
        self.waiting: dict[int, Callable[[], None]] = {}

    def take(self, seq: int, begin: Callable[[], None]) -> bool:
        """Begin what is next, and all that has waited for it. Returns whether anything was begun."""
        self.waiting[seq] = begin
        before = self.next
        while self.next in self.waiting:
            self.waiting.pop(self.next)()
            self.next += 1
        return self.next > before
