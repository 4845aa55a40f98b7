"""Which adapter versions may be sampled from now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mappa.rollout.budget import Draining


class Published:
    """The newest version of every adapter. An action takes it when it is let generate, not earlier."""

    def __init__(self) -> None:
        self.version = -1
        self._names: Mapping[str, str] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def name(self, adapter: str) -> str | None:
        """`modeler@12`; None where there is no such adapter."""
        return self._names.get(adapter)

    def names(self) -> list[str]:
        return list(self._names.values())

    def set(self, version: int, names: Mapping[str, str]) -> None:
        """Route new actions to these, and wake whoever waited for that version or an older one."""
        self.version, self._names = version, dict(names)
        for wanted, reached in self._waiting:
            if wanted <= version and not reached.done():
                reached.set_result(None)
        self._waiting = [(wanted, reached) for wanted, reached in self._waiting if not reached.done()]

    async def at_least(self, version: int) -> None:
        """Return when `version` or a newer one can be sampled from: an action is never staler than its batch allows.

        Raises Draining.
        """
        if self.version < version:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((version, reached))
            await reached

    def drain(self) -> None:
        """Refuse whoever waits."""
        for _, reached in self._waiting:
            if not reached.done():
                reached.set_exception(Draining())
        self._waiting.clear()
