"""Where bought replies are kept, so that none is bought twice. The run's journal is one such place."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from mappa.types import Message


class Purchase(Struct, frozen=True, kw_only=True):
    """One reply of an endpoint, as it is kept.

    >>> Purchase(text='{"evidence": ...}', tokens_in=812, tokens_out=64, dollars=0.0009, finish_reason="stop")
    """

    text: str
    tokens_in: int
    tokens_out: int
    dollars: float = 0.0
    finish_reason: str = ""
    model: str = ""
    """The model that answered, as the endpoint names it."""


class Spending(Struct, frozen=True):
    """Tokens of prompts and replies, and their price in dollars."""

    tokens: int = 0
    dollars: float = 0.0


class CallStore(Protocol):
    """Purchases by key. A key names everything that the reply depends on."""

    async def find(self, key: str) -> Purchase | None: ...

    async def keep(self, key: str, purchase: Purchase) -> None:
        """Return when the purchase is where `kill -9` cannot take it."""
        ...

    def book(self, key: str, cost: Spending) -> None:
        """Count what a request for `key` that left no reply cost, or may have. Kept no later than what follows it."""
        ...

    def spent(self) -> Spending:
        """What had been spent when the store was opened: by earlier processes of the run."""
        ...


class MemoryStore:
    """Implements `CallStore` for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, Purchase] = {}
        self._lost: list[Spending] = []

    async def find(self, key: str) -> Purchase | None:
        return self._kept.get(key)

    async def keep(self, key: str, purchase: Purchase) -> None:
        self._kept[key] = purchase

    def book(self, key: str, cost: Spending) -> None:
        self._lost.append(cost)

    def spent(self) -> Spending:
        costs = [Spending(p.tokens_in + p.tokens_out, p.dollars) for p in self._kept.values()] + self._lost
        return Spending(sum(cost.tokens for cost in costs), sum(cost.dollars for cost in costs))


class ChatRequest(Struct, frozen=True, kw_only=True):
    """One request for a reply."""

    key: str
    """Everything that the reply depends on, hashed; the fence of the prompt left out, since it is drawn anew."""
    messages: tuple[Message, ...]
    schema: dict[str, object] | None = None
    """JSON schema of the reply."""
    schema_name: str = "reply"
    max_tokens: int
    tokens_in: int
    """Tokens of the prompt, estimated from above."""
