from __future__ import annotations

import asyncio
import time

import pytest

from mappa.rollout.budget import Budget, Draining, WorkLeft
from mappa.rollout.timeline import LagMeter


def test_waiters_are_served_by_priority_and_a_cancelled_one_leaves_no_hole() -> None:
    async def story() -> list[str]:
        budget, order = Budget(10), []

        async def ask(name: str, tokens: int, priority: float) -> None:
            await budget.take(tokens, (priority,))
            order.append(name)
            await asyncio.sleep(0)
            budget.give_back(tokens)

        await budget.take(10, (0,))
        asked = [asyncio.create_task(ask(*request)) for request in (("c", 5, 3), ("a", 8, 1), ("x", 1, 0), ("b", 2, 2))]
        await asyncio.sleep(0)
        asked[2].cancel()
        await asyncio.sleep(0)
        budget.give_back(10)
        await asyncio.gather(*asked, return_exceptions=True)
        assert budget.used == 0
        return order

    assert asyncio.run(story()) == ["a", "b", "c"]


def test_a_waiter_cancelled_as_it_is_granted_gives_back() -> None:
    async def story() -> int:
        budget = Budget(1)
        await budget.take(1, (0,))
        waiting = asyncio.create_task(budget.take(1, (0,)))
        await asyncio.sleep(0)
        budget.give_back(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return budget.used

    assert asyncio.run(story()) == 0


def test_draining_refuses_who_waits_and_who_comes() -> None:
    async def story() -> None:
        budget = Budget(1)
        await budget.take(1, (0,))
        waiting = asyncio.create_task(budget.take(1, (0,)))
        await asyncio.sleep(0)
        budget.drain()
        for refused in (waiting, budget.take(1, (0,))):
            with pytest.raises(Draining):
                await refused
        budget.give_back(1)
        assert budget.used == 0

    asyncio.run(story())


def test_work_left_is_learned_per_task_and_falls_as_actions_are_done() -> None:
    work = WorkLeft(4)
    assert work.seconds("new", 0) == 4.0 and work.seconds("new", 3) == 1.0
    for _ in range(40):
        work.learn("long", 10, 100.0)
    assert work.seconds("long", 0) == pytest.approx(100, rel=0.01)
    assert work.seconds("long", 9) == pytest.approx(10, rel=0.01)
    assert work.seconds("long", 50) == pytest.approx(5, rel=0.01), "it is still at work, so something is left"
    assert work.seconds("new", 0) > 90, "a task never seen is expected to be as the others"


def test_a_loop_that_is_held_up_is_seen() -> None:
    async def story() -> float:
        meter = LagMeter()
        measuring = asyncio.create_task(meter.measure())
        await asyncio.sleep(0.02)
        time.sleep(0.2)  # noqa: ASYNC251 - the fault that is measured
        await asyncio.sleep(0.02)
        measuring.cancel()
        return meter.take()

    assert asyncio.run(story()) > 0.15
