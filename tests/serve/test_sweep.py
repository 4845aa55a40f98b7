"""Clearing away goes on, whatever one thing that is to be cleared away comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from mappa.config import ServeConfig
from mappa.errors import SamplerError
from mappa.serve import wire
from mappa.serve.errors import Refused
from mappa.serve.service import Service
from mappa.serve.state import Checkpoint, Session, State


class SlowState(State):
    """On a disk that takes its time."""

    def update(self, kind: Any, id: str, **changes: Any) -> None:
        time.sleep(0.3)
        super().update(kind, id, **changes)


class BrokenWorker:
    """Cannot do what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def do(self, lane: str, work: Callable[[], None]) -> None:
        del work
        self.asked.append(lane)
        raise SamplerError("the disk is gone")


def make(state: State, worker: BrokenWorker) -> Service:
    """A service without models, whose clients may be silent for half a second."""
    nothing = cast(Any, None)
    config = ServeConfig(model="tiny", session_timeout=0.5)
    return Service(config, state, nothing, nothing, cast(Any, worker), nothing)


async def ended(state: State, id: str) -> str:
    """Why the session has ended, once it has."""
    for _ in range(400):
        session = state.find(Session, id)
        if session is not None and session.ended:
            return session.ended
        await asyncio.sleep(0.05)
    raise AssertionError(f"session {id} does not end")


async def begin(service: Service) -> str:
    return str((await service.create_session(wire.CreateSession()))["session_id"])


def test_a_sign_of_life_while_a_session_ends(tmp_path: Path) -> None:
    state = SlowState(tmp_path)

    async def run() -> None:
        service = make(state, BrokenWorker())
        sweeping = asyncio.create_task(service.sweep())
        id = await begin(service)
        ending = asyncio.create_task(service.end_session(id, "its client is done"))
        await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="its client is done") as caught:
            await service.heartbeat(wire.Heartbeat(session_id=id))
        assert caught.value.status == 410
        await ending
        assert "silent" in await ended(state, await begin(service))
        assert not sweeping.done()
        sweeping.cancel()

    try:
        asyncio.run(run())
    finally:
        state.close()


def test_what_cannot_be_cleared_away_does_not_keep_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, worker = State(tmp_path), BrokenWorker()
    now = time.time()
    state.put(
        Checkpoint(
            id="tinker://m/weights/old", model="m", kind="weights", rank=1, attention=True, mlp=True,
            created=now - 9, expires=now - 1,
        )
    )  # fmt: skip

    async def run() -> None:
        service = make(state, worker)
        sweeping = asyncio.create_task(service.sweep())
        assert "silent" in await ended(state, await begin(service))
        async with asyncio.timeout(60):
            while worker.asked.count("m") < 2:  # noqa: ASYNC110 - it is tried again, and tells nobody
                await asyncio.sleep(0.01)
        assert not sweeping.done()
        sweeping.cancel()

    try:
        asyncio.run(run())
    finally:
        state.close()
    assert "will try again" in caplog.text
