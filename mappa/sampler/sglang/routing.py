"""Which server a request goes to: the least loaded, unless another one already holds more of its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

_BLOCK = 16  # tokens
_REMEMBERED = 1 << 16  # blocks per server; a server's own cache evicts much sooner
_SLACK = 4  # requests a server may be ahead of the least loaded one, and half as many again as that one has


class Routable(Protocol):
    """What routing sees of a server."""

    load: int
    """Requests it is at work on."""
    prefixes: Prefixes


T = TypeVar("T", bound=Routable)


class Prefixes:
    """The prompt beginnings a server has seen, in blocks, each known by all that comes before it."""

    def __init__(self) -> None:
        self._seen: dict[int, None] = {}  # in order of last use

    def known(self, blocks: Iterable[int]) -> int:
        """How many of a prompt's leading blocks it has seen."""
        return sum(1 for _ in itertools.takewhile(self._seen.__contains__, blocks))

    def add(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._seen.pop(block, None)
            self._seen[block] = None
        while len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]


def blocks_of(adapter: str, prompt: Sequence[int]) -> list[int]:
    """A prompt's whole blocks. Keys and values depend on the adapter, so it is part of them."""
    return list(_chain(adapter, prompt))


def choose(servers: Sequence[T], blocks: Sequence[int]) -> T:
    """The server for a prompt. Requests of one role on one task share more of it than the role's prompts all share,
    so they meet on one server, as long as that is not far busier than the others."""
    least = min(server.load for server in servers)
    near = [server for server in servers if server.load <= least * 1.5 + _SLACK]
    return max(near, key=lambda server: (server.prefixes.known(blocks), -server.load))


def _chain(adapter: str, prompt: Sequence[int]) -> Iterator[int]:
    before = hash(adapter)
    for start in range(0, len(prompt) - _BLOCK + 1, _BLOCK):
        before = hash((before, *prompt[start : start + _BLOCK]))
        yield before
