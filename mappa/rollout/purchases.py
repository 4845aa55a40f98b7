"""The journal as the place where a coach's replies are kept: what was bought is on disk before it is used."""

from __future__ import annotations

import asyncio
import uuid

import msgspec

from mappa.coach import Purchase, Spending
from mappa.journal import Journal, read_call, read_calls

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Purchase).decode


class JournalStore:
    """Implements `coach.CallStore` over an open journal, with all that earlier processes of the run have spent."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        found = read_calls(journal.path)
        self._kept = set(found)
        self._spent = Spending(sum(tokens for tokens, _ in found.values()), sum(d for _, d in found.values()))

    async def find(self, key: str) -> Purchase | None:
        if key not in self._kept:
            return None
        return _decode(await asyncio.to_thread(read_call, self._journal.path, key))

    async def keep(self, key: str, purchase: Purchase) -> None:
        """Return when it is on disk. Raises JournalError if it cannot be written."""
        tokens = purchase.tokens_in + purchase.tokens_out
        self._journal.add_call(key, tokens, purchase.dollars, _encode(purchase))
        await self._journal.written()
        self._kept.add(key)

    def book(self, key: str, cost: Spending) -> None:
        """A row of its own without data. Raises JournalError if an earlier write has failed."""
        self._journal.add_call(f"{key}/{uuid.uuid4().hex}", cost.tokens, cost.dollars, b"")

    def spent(self) -> Spending:
        return self._spent
