"""The journal as the place where a coach's replies are kept: what was bought is on disk before it is used."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from mappa.coach import Purchase, Spending
from mappa.errors import JournalError
from mappa.journal import Journal, read_call, read_calls

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Purchase).decode


class JournalStore:
    """Implements `coach.CallStore` over an open journal, with all that earlier processes of the run have bought."""

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
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def done(error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                loop.call_soon_threadsafe(_settle, written, error)

        tokens = purchase.tokens_in + purchase.tokens_out
        self._journal.add_call(key, tokens, purchase.dollars, _encode(purchase), done)
        await written
        self._kept.add(key)

    def spent(self) -> Spending:
        return self._spent


def _settle(written: asyncio.Future[None], error: Exception | None) -> None:
    if written.done():
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(JournalError(f"a coach's reply cannot be kept: {error}; free disk space and run again"))
