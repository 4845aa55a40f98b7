"""The rollout loop's thread outlives what systems do to it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mappa.errors import TeamError
from mappa.rollout.play import play
from mappa.rollout.thread import LoopThread
from mappa.systems import FunctionSystem

STAGE = SimpleNamespace(actions=(1,))


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    made = LoopThread(patience=0.2)
    yield made
    made.close()


async def computes(stage: object) -> None:
    while True:
        pass


async def leaves(stage: object) -> None:
    async def part() -> None:
        sys.exit(3)

    async with asyncio.TaskGroup() as group:
        group.create_task(part())


async def works(stage: object) -> None:
    await asyncio.sleep(0)


def test_a_system_that_computes_for_ever_is_ended_and_the_others_go_on(thread: LoopThread) -> None:
    async def story() -> list[object]:
        systems = [FunctionSystem((), run) for run in (computes, works, computes)]
        return await asyncio.gather(*(play(one, STAGE) for one in systems), return_exceptions=True)  # type: ignore[arg-type]

    first, second, third = thread.run(story())
    assert isinstance(first, TeamError) and isinstance(third, TeamError) and second is None
    assert "rollout.patience" in str(first)


def test_what_is_no_system_may_take_its_time(thread: LoopThread) -> None:
    async def story() -> str:
        ends = time.monotonic() + 0.6
        while time.monotonic() < ends:
            pass
        return "done"

    assert thread.run(story()) == "done"


def test_a_part_that_leaves_the_program_loses_its_episode_only(thread: LoopThread) -> None:
    with pytest.raises(TeamError, match="SystemExit: 3"):
        thread.run(play(FunctionSystem((), leaves), STAGE))  # type: ignore[arg-type]
    thread.run(play(FunctionSystem((), works), STAGE))  # type: ignore[arg-type]
