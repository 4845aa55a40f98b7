"""Servers on a virtual clock: continuous batching, prefix reuse, bounded keys and values, on GPUs shared with learning.

All running rows of a server advance together, a token each per step, so the time of a token depends on how many rows
there are and on how much context they hold. Prompts go first and hold decoding up meanwhile. A GPU on which a server
and the learner are both at work gives half of its time to each.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from bench.parts.profile_node import Cost, Work, prompt_work
from mappa.sampler.sglang.routing import Prefixes, blocks_of

BLOCK = 16
"""Tokens of a block of the router, by which prefixes are reused."""
SEGMENT = 256
"""Tokens decoded at most before the growing context is looked at again."""


class Use(Struct, frozen=True):
    """Who was at work on a GPU from `began` to `ended`, seconds of the virtual clock."""

    began: float
    ended: float
    serving: bool
    learning: bool

    @property
    def each(self) -> float:
        """Share of the time that each who was at work had."""
        return 0.5 if self.serving and self.learning else 1.0


class Gpu:
    """Shared by turns. `uses` is its history without the time in which it was idle."""

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self.serving = self.learning = False
        self._since = 0.0
        self._listeners: list[Callable[[], None]] = []

    def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever somebody begins or ends to work."""
        self._listeners.append(changed)

    def forget(self, changed: Callable[[], None]) -> None:
        self._listeners.remove(changed)

    def set(self, *, serving: bool | None = None, learning: bool | None = None) -> None:
        """Somebody begins or ends to work."""
        new = (self.serving if serving is None else serving, self.learning if learning is None else learning)
        if new == (self.serving, self.learning):
            return
        now = asyncio.get_running_loop().time()
        if (self.serving or self.learning) and now > self._since:
            self.uses.append(Use(self._since, now, self.serving, self.learning))
        self._since = now
        self.serving, self.learning = new
        for changed in list(self._listeners):
            changed()

    @property
    def each(self) -> float:
        """Share of its time that one who is at work now has."""
        return 0.5 if self.serving and self.learning else 1.0


class _Row:
    """A request."""

    def __init__(self, adapter: str, prompt: tuple[int, ...], output: tuple[int, ...], blocks: list[int]) -> None:
        self.blocks = blocks
        self.whole = blocks_of(adapter, prompt + output)
        self.prompt = len(prompt)
        self.left = float(len(output))
        self.size = len(prompt) + len(output)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Counted(Struct):
    """What a server has done, tokens."""

    prefilled: int = 0
    reused: int = 0
    decoded: float = 0.0
    steps: float = 0.0
    """Of decoding, each a token of every row."""
    prefill_seconds: float = 0.0
    """At full speed."""
    decode_seconds: float = 0.0
    full_seconds: float = 0.0
    """In which a request waited for room for its keys and values."""
    pairs: float = 0.0
    """(token, token it attends to), of prompts and of what was written."""

    @property
    def work(self) -> Work:
        """As operations are counted."""
        return Work(self.prefilled + self.decoded, self.pairs, self.decoded)


class Engine:
    """One server on one GPU, with room for the keys and values of `capacity` tokens; implements `Routable`."""

    def __init__(self, cost: Cost, gpu: Gpu, capacity: int, roles: Sequence[str] = ()) -> None:
        """`roles` are those it serves; none: all."""
        self.prefixes = Prefixes()
        self.load = 0
        self.roles = roles
        self.count = Counted()
        self._cost = cost
        self._gpu = gpu
        self._capacity = capacity
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._cached: OrderedDict[int, None] = OrderedDict()  # blocks, in order of last use
        self._wake = asyncio.Event()
        gpu.listen(self._wake.set)

    async def generate(self, adapter: str, prompt: tuple[int, ...], output: tuple[int, ...], blocks: list[int]) -> None:
        """Return when it is generated. `blocks` are the prompt's (see routing)."""
        row = _Row(adapter, prompt, output, blocks)
        self.prefixes.add(blocks)
        self.load += 1
        self._waiting.append(row)
        self._wake.set()
        try:
            await row.done
        finally:
            self.load -= 1
            if row in self._waiting:
                self._waiting.remove(row)
            if row in self._rows:
                self._rows.remove(row)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            if admitted := self._admit():
                await self._prefill(admitted)
            elif self._rows:
                await self._decode()
            else:
                self._gpu.set(serving=False)
                self._wake.clear()
                await self._wake.wait()

    def _admit(self) -> list[_Row]:
        admitted = []
        while self._waiting and self._fits(self._waiting[0]):
            row = self._waiting.popleft()
            self._rows.append(row)
            admitted.append(row)
        return admitted

    def _fits(self, row: _Row) -> bool:
        return not self._rows or sum(other.size for other in self._rows) + row.size <= self._capacity

    async def _prefill(self, rows: list[_Row]) -> None:
        prompts = []
        for row in rows:
            known = sum(1 for _ in itertools.takewhile(self._cached.__contains__, row.blocks))
            cached = min(BLOCK * known, row.prompt - 1)
            prompts.append((row.prompt, cached))
            self.count.prefilled += row.prompt - cached
            self.count.reused += cached
            self.count.pairs += prompt_work(row.prompt, cached).pairs
            self._remember(row.blocks)
        seconds = self._cost.prefill(prompts)
        self.count.prefill_seconds += seconds
        self._gpu.set(serving=True)
        await self._spend(seconds, lambda: False)

    async def _decode(self) -> None:
        """Up to the next row that ends, but no more than a segment, and no further than the next prompt to come in."""
        rows = list(self._rows)
        tokens = min(SEGMENT, min(row.left for row in rows))
        context = sum(row.size - row.left for row in rows) + len(rows) * tokens / 2
        seconds = tokens * self._cost.decode(len(rows), context)
        self._gpu.set(serving=True)
        full, began = bool(self._waiting), asyncio.get_running_loop().time()
        share = await self._spend(seconds, lambda: bool(self._waiting) and self._fits(self._waiting[0]))
        self.count.full_seconds += (asyncio.get_running_loop().time() - began) * full
        self.count.decode_seconds += share * seconds
        self.count.steps += share * tokens
        self.count.decoded += share * tokens * len(rows)
        self.count.pairs += share * tokens * context
        for row in rows:
            row.left -= share * tokens
            if row.left < 1e-6 and row in self._rows:
                self._rows.remove(row)
                self._remember(row.whole)
                if not row.done.done():
                    row.done.set_result(None)

    async def _spend(self, seconds: float, stop: Callable[[], bool]) -> float:
        """So many seconds of the GPU, however long that takes; the share of them that passed before `stop`."""
        left = await spend(seconds, lambda: self._gpu.each, self._wake, stop)
        return 1.0 - left / seconds

    def _remember(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._cached[block] = None
            self._cached.move_to_end(block)
        room = max(0, self._capacity - sum(row.size for row in self._rows)) // BLOCK
        while len(self._cached) > max(room, len(blocks)):
            self._cached.popitem(last=False)


async def spend(
    seconds: float, speed: Callable[[], float], changed: asyncio.Event, stop: Callable[[], bool] = lambda: False
) -> float:
    """Wait until so many seconds of work are done at `speed()`, which changes when `changed` is set, or until `stop()`.
    Returns what is left of them."""
    loop, left = asyncio.get_running_loop(), seconds
    while left > 1e-9 * max(seconds, 1.0) and not stop():
        began, now = loop.time(), speed()
        changed.clear()
        try:
            async with asyncio.timeout(left / now):
                await changed.wait()
        except TimeoutError:
            return 0.0
        left -= (loop.time() - began) * now
    return max(left, 0.0) if left > 1e-9 * max(seconds, 1.0) else 0.0


async def learn_on(gpus: Sequence[Gpu], seconds: float) -> None:
    """So many seconds of work on every one of `gpus`, which go on together: as fast as the busiest lets them."""
    changed = asyncio.Event()
    wake = changed.set
    for gpu in gpus:
        gpu.listen(wake)
        gpu.set(learning=True)
    await spend(seconds, lambda: min(gpu.each for gpu in gpus), changed)
    for gpu in gpus:
        gpu.set(learning=False)
        gpu.forget(wake)


def busy(gpu: Gpu, began: float, ended: float) -> tuple[float, float]:
    """(serving, learning): shares of the time between, which never add up to more than 1."""
    serving = learning = 0.0
    for use in gpu.uses:
        seconds = max(0.0, min(use.ended, ended) - max(use.began, began)) * use.each
        serving += seconds * use.serving
        learning += seconds * use.learning
    return serving / (ended - began), learning / (ended - began)
