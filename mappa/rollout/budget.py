"""How much is generated at once, and who goes first: tokens in flight, given out by priority."""

from __future__ import annotations

import asyncio
import heapq
import itertools

Priority = tuple[float, ...]
"""Smaller goes first."""


class Draining(Exception):
    """Nothing more is begun: the run is about to stop."""


class Budget:
    """At most `tokens` in flight; a request that is larger than that goes alone.

    Those who wait are served strictly in order of priority, so that a large request is never overtaken for ever.

    >>> await budget.take(len(prompt) + max_tokens, priority)       # and give_back when it is generated
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.used = 0
        self._order = itertools.count()
        self._waiting: list[tuple[Priority, int, int, asyncio.Future[None]]] = []
        self._draining = False

    def drain(self) -> None:
        """Refuse whoever waits and whoever comes; what is in flight goes on."""
        self._draining = True
        for _, _, _, granted in self._waiting:
            if not granted.done():
                granted.set_exception(Draining())
        self._waiting.clear()

    def check(self) -> None:
        """Raises Draining where nothing more is to be begun."""
        if self._draining:
            raise Draining

    async def take(self, tokens: int, priority: Priority) -> None:
        """Wait for `tokens`. Raises Draining."""
        self.check()
        if not self._waiting and self._fits(tokens):
            self.used += tokens
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), tokens, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.give_back(tokens)  # granted in the same turn of the loop
            raise

    def give_back(self, tokens: int) -> None:
        self.used -= tokens
        while self._waiting:
            _, _, wanted, granted = self._waiting[0]
            if not granted.done() and not self._fits(wanted):
                break
            heapq.heappop(self._waiting)
            if not granted.done():
                self.used += wanted
                granted.set_result(None)

    def _fits(self, tokens: int) -> bool:
        return self.used + tokens <= self.tokens or self.used == 0


class WorkLeft:
    """Estimates how many seconds of work an episode has before it, from those of its task that ended, else from all."""

    def __init__(self, actions: int) -> None:
        """`actions` is how many to expect of an episode before any has ended."""
        self._all = _Mean(float(actions), 1.0)
        self._tasks: dict[str, _Mean] = {}

    def learn(self, task: str, actions: int, seconds: float) -> None:
        """An episode of `task` ended after so many actions that took so many seconds without their queueing."""
        if actions:
            self._all.add(actions, seconds / actions)
            self._tasks.setdefault(task, _Mean(self._all.actions, self._all.seconds)).add(actions, seconds / actions)

    def seconds(self, task: str, done: int) -> float:
        """After `done` actions. An episode that outlives its estimate still has half an action to go."""
        mean = self._tasks.get(task, self._all)
        return max(mean.actions - done, 0.5) * mean.seconds


class _Mean:
    """Running means of actions per episode and seconds per action; the latest weighs a quarter."""

    def __init__(self, actions: float, seconds: float) -> None:
        self.actions, self.seconds = actions, seconds

    def add(self, actions: float, seconds: float) -> None:
        self.actions += 0.25 * (actions - self.actions)
        self.seconds += 0.25 * (seconds - self.seconds)
