"""How fast an endpoint is asked: requests in flight, requests and tokens per minute, a breaker, when to hedge.

Each is a small machine over times that it is given, so that it can be tested without waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque

CUT = 0.7
"""What is left of the limit after an overload."""


class Slots:
    """Requests in flight, their number found by additive increase and multiplicative decrease (AIMD).

    Until the first overload every success adds one (the limit doubles per round trip); after it a round trip adds
    `step`. An overload cuts the limit to 0.7 of itself, once per round trip, since the requests that were in flight
    together are all refused together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(min(most, max(4, most // 4)))
        self.in_flight = 0
        self._step = max(1.0, most / 20)
        self._cut_at: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given a slot in the moment it gave up
                self.release()
            else:
                self._waiting.remove(place)
            raise

    def try_acquire(self) -> bool:
        """Take a slot if one is free at once."""
        if self.in_flight >= int(self.limit) or self._waiting:
            return False
        self.in_flight += 1
        return True

    def release(self) -> None:
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        grown = self.limit + (1.0 if self._cut_at is None else self._step / self.limit)
        self.limit = min(float(self.most), grown)
        self._admit()

    def overloaded(self, now: float, round_trip: float) -> None:
        if self._cut_at is None or now - self._cut_at >= round_trip:
            self.limit = max(1.0, self.limit * CUT)
            self._cut_at = now

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)


class Pace:
    """At most `per_minute` units in any minute (one request's more), spread evenly after a burst of a tenth of it.

    The generic cell rate algorithm: the time at which the next unit is due moves on with every unit taken.
    """

    def __init__(self, per_minute: int) -> None:
        self._seconds = 60 / (0.9 * per_minute) if per_minute else 0.0
        self._burst = 0.1 * per_minute * self._seconds
        self._due = float("-inf")

    def take(self, units: float, now: float) -> float:
        """Seconds to wait before `units` may be used; they are taken from this moment on."""
        self._due = max(self._due, now - self._burst)
        wait = max(0.0, self._due - now)
        self._due += units * self._seconds
        return wait

    def give_back(self, units: float) -> None:
        """Units that were taken and not used."""
        self._due -= units * self._seconds


class Breaker:
    """Opens after `threshold` failures in a row; then one request at a time tries, after a pause that doubles."""

    def __init__(self, threshold: int = 10, pause: float = 1.0, longest: float = 30.0) -> None:
        self._threshold, self._first, self._longest = threshold, pause, longest
        self._failures = 0
        self._pause = pause
        self._open_until: float | None = None

    @property
    def open(self) -> bool:
        return self._open_until is not None

    def wait(self, now: float) -> float:
        """Seconds until this request may try; 0: it may now, and while the breaker is open it is the only one."""
        if self._open_until is None:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        self._open_until = now + self._pause  # the others wait for what becomes of this one
        return 0.0

    def succeeded(self) -> None:
        self._failures, self._pause, self._open_until = 0, self._first, None

    def failed(self, now: float) -> None:
        self._failures += 1
        if self._open_until is not None:
            self._pause = min(self._longest, 2 * self._pause)
        if self._failures >= self._threshold:
            self._open_until = now + self._pause


class Latency:
    """Seconds of the last successes: their mean, and the 95th percentile once there are enough of them."""

    def __init__(self, keep: int = 200, enough: int = 20) -> None:
        self._recent: deque[float] = deque(maxlen=keep)
        self._enough = enough
        self._since = 0
        self._p95: float | None = None
        self.mean = 1.0

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._since += 1
        if len(self._recent) >= self._enough and (self._p95 is None or self._since >= self._enough):
            ordered = sorted(self._recent)
            self._p95 = ordered[int(0.95 * (len(ordered) - 1))]
            self.mean = sum(ordered) / len(ordered)
            self._since = 0

    def p95(self) -> float | None:
        return self._p95
