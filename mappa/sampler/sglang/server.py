"""One server's life: brought up, proven, watched, lost, brought up again with the adapters of that moment.

    starting -> up -> lost -> starting ...   until it is given up (`failure`) or `close`d

Requests are routed to it only while it is up, not under suspicion, and has proven the adapter they name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from mappa.config import SGLangConfig
from mappa.errors import AdapterError, ServerError
from mappa.sampler.sglang.process import ServerProcess
from mappa.sampler.sglang.proof import CONTROL_SECONDS, Proof
from mappa.sampler.sglang.routing import Prefixes
from mappa.sampler.sglang.weights import Published
from mappa.sampler.sglang.wire import Client, Refused, Reply, Unreachable
from mappa.types import SamplingParams

T = TypeVar("T")
_POLL_SECONDS = 0.5


class Shared(Struct, frozen=True, kw_only=True):
    """What all servers of a sampler have in common."""

    config: SGLangConfig
    proof: Proof
    logs: Path
    live: Mapping[str, Published]
    """Adapters that are published and not retired, by name."""
    ports: set[int]
    notice: Callable[[str], None]
    changed: Callable[[], None]
    """Called when what can be routed where has changed."""


class Server:
    """A server of our own, or with `url` one that runs already. `supervise` keeps it serving."""

    def __init__(self, number: int, shared: Shared, url: str | None = None) -> None:
        self.name = url or f"server {number}"
        self.up = False
        self.failure: Exception | None = None
        self.loaded: set[str] = set()
        """Adapters it has proven that it serves, by name."""
        self.load = 0
        self.prefixes = Prefixes()
        self._number = number
        self._shared = shared
        self._config = shared.config
        self._url = url
        self._client = Client(url) if url else None
        self._process: ServerProcess | None = None
        self._alarm = asyncio.Event()
        self._distrust = ""
        self._running: set[asyncio.Future[Any]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    def routable(self, adapter: str) -> bool:
        return self.up and not self._alarm.is_set() and adapter in self.loaded

    async def supervise(self) -> None:
        """Keep the server up until cancelled, or until it fails `restarts` times in a row: then `failure` says why.
        The first start has one try: what is wrong with it is most likely wrong with the config."""
        tries_left = 0
        try:
            while True:
                try:
                    await self._bring_up()
                except (ServerError, AdapterError) as error:
                    await self._end_process()
                    if tries_left == 0:
                        raise
                    tries_left -= 1
                    self._shared.notice(f"{self.name} did not come up again; trying once more. {error}")
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                tries_left = self._config.restarts
                reason = await self._watch()
                self._lose()
                self._shared.notice(f"{self.name} was lost: {reason}; its requests move, and it is brought up again")
                await self._end_process()
        except Exception as error:
            self.failure = error
            self._shared.changed()
            if not isinstance(error, (ServerError, AdapterError)):
                raise

    async def close(self) -> None:
        """End it if it is ours; leave it as it was found if not."""
        self._lose()
        await asyncio.gather(*self._cleaning, return_exceptions=True)
        if self._url is not None:
            with contextlib.suppress(Unreachable, Refused):
                for name in self._shared.live.values():
                    await self.client.unload(name.served, CONTROL_SECONDS)
            await self.client.close()
        await self._end_process()

    async def load_adapter(self, published: Published) -> None:
        """Load an adapter and see that its canary sings. Raises Unreachable, or AdapterError where it does not.

        While it is up a broken connection is tried once more: servers close idle ones at any moment.
        """
        try:
            await self._load_and_prove(published)
        except Unreachable:
            if not self.up:
                raise
            present = await self._or_lost(self.client.adapters(CONTROL_SECONDS))
            await self._load_and_prove(published, loaded=published.served in present)

    async def _load_and_prove(self, published: Published, *, loaded: bool = False) -> None:
        try:
            if not loaded:
                await self._or_lost(published.load(self.client, CONTROL_SECONDS))
        except Refused as error:
            raise AdapterError(f"{self.name} refuses adapter {published.name!r}: {error}") from None
        try:
            await self._or_lost(self._prove(published))
        except AdapterError:
            await self.unload_adapter(published)
            raise

    async def unload_adapter(self, published: Published) -> None:
        """Take an adapter away that no request uses. A server that cannot do so is looked at."""
        self.loaded.discard(published.name)
        try:
            await self._or_lost(self.client.unload(published.served, CONTROL_SECONDS))
        except (Unreachable, Refused) as error:
            self.suspect(f"could not unload {published.name}: {error}")

    async def generate(
        self,
        prompt: tuple[int, ...],
        published: Published,
        params: SamplingParams,
        end_ids: tuple[int, ...],
        rid: str,
    ) -> Reply:
        """Raises Unreachable where another server should be asked, Refused where that would not help."""
        seconds = self._config.deadline
        self.load += 1
        try:
            return await self._or_lost(self.client.generate(prompt, published.served, params, end_ids, rid, seconds))
        except (Unreachable, asyncio.CancelledError) as error:
            self._clean_up(rid)
            if isinstance(error, Unreachable):
                self.suspect(str(error))
            raise
        finally:
            self.load -= 1

    async def abort(self, rid: str) -> None:
        with contextlib.suppress(Unreachable, Refused):  # a lost server's requests are over anyway
            await self.client.abort(rid, CONTROL_SECONDS)

    def suspect(self, why: str) -> None:
        """Route nothing here until its health has been looked at."""
        if self.up and not self._alarm.is_set():
            self._shared.notice(f"{self.name} is under suspicion: {why}")
            self._alarm.set()

    def distrust(self, why: str) -> None:
        """Take it for lost, whatever its health says."""
        self._distrust = why
        self._alarm.set()

    async def _bring_up(self) -> None:
        """Return when it serves every live adapter. Raises ServerError with what it last said."""
        try:
            async with asyncio.timeout(self._config.start_timeout):
                if self._url is None:
                    await self._start_process()
                await self._until_healthy()
                await self._shared.proof.of_server(self.client, self.name)
                await self._load_missing()
        except TimeoutError:
            seconds = self._config.start_timeout
            raise ServerError(
                f"{self.name} was not up after {seconds:.0f} s (sampler.sglang.start_timeout). {self._last_words()}"
            ) from None
        except Unreachable as error:
            raise ServerError(
                f"{self.name} stopped answering while it came up: {error}. {self._last_words()}"
            ) from None
        except Refused as error:
            raise ServerError(f"{self.name} refused a request while it came up: {error}") from None
        self.up, self._distrust = True, ""
        self._alarm.clear()
        self._shared.changed()

    async def _start_process(self) -> None:
        log = self._shared.logs / f"sglang-{self._number}.log"
        self._process = await ServerProcess.start(
            self._config, self._shared.proof.launch, self._number, log, self._shared.ports, self._alarm.set
        )
        self._client = Client(self._process.url)

    async def _until_healthy(self) -> None:
        while not await self.client.healthy(self._config.health_timeout):
            if self._process is not None and self._process.ended:
                raise ServerError(f"{self.name} ended while it came up. {self._last_words()}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _load_missing(self) -> None:
        """Load what is published. Versions published meanwhile are loaded too: between the last look at what is
        missing and being up there is no await."""
        present = await self.client.adapters(CONTROL_SECONDS)
        while missing := [one for name, one in self._shared.live.items() if name not in self.loaded]:
            for published in missing:
                if published.served in present:
                    await self._prove(published)
                else:
                    await self.load_adapter(published)

    async def _prove(self, published: Published) -> None:
        await self._shared.proof.of_adapter(self.client, self.name, published)
        self.loaded.add(published.name)

    async def _watch(self) -> str:
        """Return, with the reason, when the server is lost."""
        misses = 0
        while True:
            if self._process is not None and self._process.ended:
                return f"it ended. {self._last_words()}"
            if self._distrust:
                return self._distrust
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._alarm.wait(), self._config.health_interval)
            if self._distrust or (self._process is not None and self._process.ended):
                continue
            fault = await self._fault()
            misses = misses + 1 if fault else 0
            if misses > 1 or (fault and self._alarm.is_set()):
                return fault
            if not fault and self._alarm.is_set():
                self._alarm.clear()
                self._shared.changed()

    async def _fault(self) -> str:
        """What is wrong with it, if anything: no health, or adapters gone because somebody restarted it."""
        seconds = self._config.health_timeout
        if not await self.client.healthy(seconds):
            return "it does not answer"
        try:
            present = await self.client.adapters(seconds)
        except (Unreachable, Refused) as error:
            return f"it does not answer ({error})"
        live = [self._shared.live[name] for name in self.loaded if name in self._shared.live]
        gone = [published.name for published in live if published.served not in present]
        return f"it no longer has {', '.join(sorted(gone))}" if gone else ""

    async def _or_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, or raise Unreachable as soon as the server is lost."""
        running = asyncio.ensure_future(work)
        self._running.add(running)
        try:
            return await running
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Unreachable(f"{self.name} was lost") from None
        finally:
            self._running.discard(running)

    def _lose(self) -> None:
        self.up = False
        self.loaded.clear()
        self.prefixes = Prefixes()
        for running in self._running:
            running.cancel()
        self._shared.changed()

    def _clean_up(self, rid: str) -> None:
        """End a request that nobody waits for any more."""
        task = asyncio.create_task(self.abort(rid))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _end_process(self) -> None:
        self.loaded.clear()
        process, self._process = self._process, None
        if process is not None:
            await process.stop()
            await self.client.close()

    def _last_words(self) -> str:
        if self._process is None:
            return ""
        return f"The last lines of {self._process.log}:{self._process.last_words()}"
