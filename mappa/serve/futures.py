"""Answers that are not there yet: a request is taken in at once, its result asked for by id until it is there."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import msgspec
from msgspec import Struct

from mappa.serve.errors import Refused

Category = Literal["user", "server"]
JSON, PROTO = "application/json", "application/x-protobuf"


class Answer(Struct, frozen=True):
    """What is sent back as it is."""

    body: bytes
    content_type: str = JSON


class Futures:
    """Results by request id, kept for `keep` seconds after they came."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._since: dict[str, float] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._answers

    def open(self, id: str) -> None:
        self._answers[id] = asyncio.get_running_loop().create_future()

    def resolve(self, id: str, answer: Answer) -> None:
        future = self._answers.get(id)
        if future is not None and not future.done():
            future.set_result(answer)
            self._since[id] = time.monotonic()

    def fail(self, id: str, message: str, category: Category) -> None:
        self.resolve(id, Answer(msgspec.json.encode({"error": message, "category": category})))

    async def wait(self, id: str, seconds: float) -> Answer | None:
        """The answer, or None if it is not there in time. Raises Refused for an id that is not known (any more)."""
        future = self._answers.get(id)
        if future is None:
            raise Refused(410, f"no request {id!r}: its result was forgotten, or the server was started again since")
        done, _ = await asyncio.wait([future], timeout=seconds)
        return future.result() if done else None

    def forget(self) -> None:
        """Drop results that were there long enough to be fetched."""
        before = time.monotonic() - self._keep
        for id in [id for id, since in self._since.items() if since < before]:
            del self._since[id], self._answers[id]
