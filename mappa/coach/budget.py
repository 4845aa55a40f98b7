"""What a run may still buy. Reserved before a request at its highest possible cost, settled by what it did cost.

So the sum of what was bought never passes the budget; a request whose end is not known (it was given up, or its
connection broke) counts at its reservation, since it may have been billed.
"""

from __future__ import annotations

import asyncio

from mappa.coach.store import Spending
from mappa.config import ChatConfig


class Budget:
    """Tokens and dollars of one run, shared by all endpoints of its coach. 0 = no limit."""

    def __init__(self, tokens: int = 0, dollars: float = 0.0, spent: Spending = Spending()) -> None:  # noqa: B008
        self.tokens, self.dollars = tokens, dollars
        self.spent = spent
        self.reserved = Spending()
        self.exhausted = False
        """A reservation was refused, and no request in flight can still make room for it."""
        self._waiting: list[asyncio.Future[None]] = []

    def reserve(self, cost: Spending) -> bool:
        """Set `cost` aside. False: it would pass the budget."""
        tokens = self.spent.tokens + self.reserved.tokens + cost.tokens
        dollars = self.spent.dollars + self.reserved.dollars + cost.dollars
        if (self.tokens and tokens > self.tokens) or (self.dollars and dollars > self.dollars):
            self.exhausted = self.exhausted or not self.reserved.tokens
            return False
        self.reserved = _plus(self.reserved, cost)
        return True

    async def reserve_or_wait(self, cost: Spending) -> bool:
        """Set `cost` aside, once requests in flight have been settled where it needs their room. False: it is spent."""
        while not self.reserve(cost):
            if self.exhausted:
                return False
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(settled)
            await settled
        return True

    def settle(self, reserved: Spending, cost: Spending) -> None:
        """Give a reservation back and book what the request did cost."""
        self.reserved = _plus(self.reserved, Spending(-reserved.tokens, -reserved.dollars))
        self.spent = _plus(self.spent, cost)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    def __str__(self) -> str:
        parts = []
        if self.tokens:
            parts.append(f"{self.spent.tokens:,} of {self.tokens:,} tokens (coach.budget_tokens)")
        if self.dollars:
            parts.append(f"{self.spent.dollars:.2f} of {self.dollars:.2f} dollars (coach.budget_dollars)")
        return " and ".join(parts) or f"{self.spent.tokens:,} tokens, without a limit"


def price(config: ChatConfig, tokens_in: int, tokens_out: int) -> Spending:
    """What so many tokens cost at an endpoint's prices."""
    dollars = (tokens_in * config.dollars_in + tokens_out * config.dollars_out) / 1e6
    return Spending(tokens_in + tokens_out, dollars)


def _plus(a: Spending, b: Spending) -> Spending:
    return Spending(a.tokens + b.tokens, a.dollars + b.dollars)
