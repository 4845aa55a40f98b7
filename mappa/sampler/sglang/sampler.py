"""The sampler over SGLang servers: every role's adapter on every server, requests that outlive the server they are on.

    publish: write -> load on all servers -> canary on each -> routed to        (nothing pauses)
    retire:  no new requests -> our own count of running ones is zero -> unload -> files deleted

A server is asked for an adapter by a name that only this version of this run has, the request's id carries that name,
and the answer must carry the id. A name a server does not know is an error there: it never samples from the base.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from mappa.config import SGLangConfig
from mappa.errors import AdapterError, SamplerError, ServerError
from mappa.model.base import Base
from mappa.model.lora import Adapter, RoleLinear, check_adapter
from mappa.sampler import adapter_name
from mappa.sampler.sglang.answers import Answers
from mappa.sampler.sglang.canary import Canary
from mappa.sampler.sglang.process import Launch, check_python, count
from mappa.sampler.sglang.proof import Proof
from mappa.sampler.sglang.routing import blocks_of, choose
from mappa.sampler.sglang.server import Server, Shared
from mappa.sampler.sglang.weights import Published, Shelf, copied, rank_of, tensor_request
from mappa.sampler.sglang.wire import Refused, Unreachable
from mappa.types import Generation, SamplingParams

_ATTEMPTS = 4
"""Servers that may fail a request before it is given up: it may be what makes them fail."""
_PROBE = "Tokens: def f(x):\n\treturn x ** 2 + 3.14  # ça, 漢字\n\n"
_CLOSE_SECONDS = 5.0
_ABORTED = Generation(output_ids=(), logprobs=(), finish_reason="abort")


@dataclass(eq=False)
class _Request:
    id: str
    adapter: str
    at: tuple[Server, str] | None = None
    """The server it is on and the id it has there."""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class SGLangSampler:
    """Implements `Sampler`. Made by `open`; everything of it belongs to the loop it was opened on."""

    def __init__(
        self,
        base: Base,
        layers: Mapping[str, RoleLinear],
        config: SGLangConfig,
        launch: Launch,
        canary: Canary,
        logs: Path,
        notice: Callable[[str], None],
    ) -> None:
        self.servers: list[Server] = []
        self.tokens = 0
        """Tokens sampled since the start."""
        self._base = base
        self._layers = layers
        self._config = config
        self._launch = launch
        self._canary = canary
        self._logs = logs
        self._notice = notice
        self._run = f"{os.getpid():x}{secrets.token_hex(4)}"
        self._scale = next(iter(layers.values())).scale
        self._shelf = Shelf(self._run) if self._loads_folders() else None
        self._answers = Answers(base, launch.max_context)
        self._live: dict[str, Published] = {}
        self._names: set[str] = set()  # ever used
        self._retired: set[str] = set()
        self._users: dict[str, int] = {}
        self._open: set[_Request] = set()
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._supervisors: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy_before, self._busy_since = 0.0, 0.0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        base: Base,
        layers: Mapping[str, RoleLinear],
        config: SGLangConfig,
        launch: Launch,
        canary: Canary,
        *,
        logs: Path,
        notice: Callable[[str], None],
    ) -> AsyncIterator[SGLangSampler]:
        """Start or find the servers and prove that they serve this base. Their logs go to the folder `logs`.

        `notice` is told, in a line, of servers that are lost and adapters that do not match. Raises ConfigError or
        ServerError.
        """
        await asyncio.to_thread(check_python, config)
        sampler = cls(base, layers, config, launch, canary, logs, notice)
        try:
            await sampler._start()
            yield sampler
        finally:
            await sampler._close()

    @property
    def busy_seconds(self) -> float:
        """Wall time with requests in flight."""
        return self._busy_before + (time.monotonic() - self._busy_since if self._open else 0.0)

    def served_name(self, adapter: str) -> str:
        """What servers know a published version as."""
        return self._live[adapter].served

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        """Sample one continuation (see `Sampler.generate`), on another server where one is lost. Raises ServerError
        when none is left."""
        if adapter not in self._live or adapter in self._retired:
            served = sorted(set(self._live) - self._retired)
            raise AdapterError(f"request {request_id}: adapter {adapter!r} is not served; served: {served}")
        self._answers.check(prompt_ids, params, request_id)
        request = _Request(request_id, adapter)
        self._begin(request)
        try:
            generation = await self._answer(request, self._live[adapter], tuple(prompt_ids), params)
        finally:
            self._end(request)
        self.tokens += len(generation.output_ids)
        return generation

    async def publish(self, role: str, version: int, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
        """Load a version on every server, prove it there, and return its name. Requests go on meanwhile.

        A server that does not serve it rightly is brought up anew, and the run is told. Raises AdapterError where none
        serves it and one says so, others being lost meanwhile or not: then the name is burnt and nothing is routed to
        it.
        """
        name = adapter_name(role, version)
        check_adapter(self._layers, tensors, name)
        if name in self._names:
            what = "was retired" if name in self._retired else "was published before"
            raise AdapterError(f"adapter {name!r} {what}; a name is never reused, publish the next version")
        if rank_of(tensors) > self._launch.rank:
            raise AdapterError(
                f"adapter {name!r} has rank {rank_of(tensors)}, the servers take up to {self._launch.rank}; set "
                "learn.rank to the highest rank there is"
            )
        self._names.add(name)
        published = self._live[name] = await self._prepare(role, name, tensors)
        servers = [server for server in self.servers if server.up]
        results = await asyncio.gather(*(self._load(server, published) for server in servers))
        faults = [fault for fault in results if fault is not None]
        if faults and not any(name in server.loaded for server in self.servers):
            del self._live[name]
            await asyncio.to_thread(published.forget)
            raise AdapterError("; ".join(str(fault) for fault in faults))
        for server, fault in zip(servers, results, strict=True):
            if fault is not None:
                server.distrust(str(fault))
        self._news()
        return name

    async def retire(self, adapter: str) -> None:
        """Refuse new requests for a version; unload it when the running ones are done."""
        if adapter not in self._live:
            raise AdapterError(f"adapter {adapter!r} is not published; published: {sorted(self._live)}")
        self._retired.add(adapter)
        self._forget_unused(adapter)

    async def abort(self, prefix: str) -> None:
        """See `Sampler.abort`. Returns when the requests are over."""
        chosen = [request for request in self._open if request.id.startswith(prefix)]
        for request in chosen:
            request.aborted.set()
        while pending := [request for request in chosen if not request.done.is_set()]:
            # Again until it is over: an abort that overtakes its request finds nothing to end.
            await asyncio.gather(*(server.abort(rid) for server, rid in (r.at for r in pending if r.at is not None)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pending[0].done.wait(), 0.2)

    async def health(self) -> None:
        """Return if a server is up; raise ServerError if none is."""
        if not any(server.up for server in self.servers):
            reasons = "; ".join(str(server.failure or f"{server.name} is being brought up") for server in self.servers)
            raise ServerError(f"no server is up: {reasons}")

    async def _start(self) -> None:
        ids, scores = await self._canary.score(None, None)
        probe = list(self._base.tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        proof = Proof(
            launch=self._launch,
            seeded=self._config.seeded,
            tokenizer_probe=(_PROBE, probe),
            base_canary=(ids, scores),
            tolerance=self._canary.tolerance,
            run=self._run,
        )
        shared = Shared(
            config=self._config,
            proof=proof,
            logs=self._logs,
            live=self._live,
            ports=set(),
            notice=self._notice,
            changed=self._news,
        )
        urls: list[str | None] = [*self._config.urls] or [None] * count(self._config)
        self.servers = [Server(number, shared, url) for number, url in enumerate(urls)]
        self._supervisors = [self._spawn(server.supervise()) for server in self.servers]
        while not all(server.up for server in self.servers):
            for server in self.servers:
                if server.failure is not None:
                    raise server.failure
            await self._wait_for_news()

    async def _close(self) -> None:
        for task in self._supervisors:
            task.cancel()
        unloading = self._tasks.difference(self._supervisors)
        if unloading:
            await asyncio.wait(unloading, timeout=_CLOSE_SECONDS)
        for task in unloading:
            task.cancel()
        await asyncio.gather(*self._supervisors, *unloading, return_exceptions=True)
        await asyncio.gather(*(server.close() for server in self.servers))
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.close)

    async def _prepare(self, role: str, name: str, tensors: Adapter) -> Published:
        adapter = await asyncio.to_thread(copied, tensors)
        ids, scores = await self._canary.score(role, adapter)
        served = f"{name}.{self._run}"
        folder, body = None, None
        if self._shelf is not None:
            folder = await asyncio.to_thread(self._shelf.write, served, adapter, self._scale)
        else:
            body = await asyncio.to_thread(tensor_request, served, adapter, self._scale, self._config.tp)
        return Published(name=name, served=served, folder=folder, body=body, canary_ids=ids, canary=scores)

    async def _load(self, server: Server, published: Published) -> AdapterError | None:
        """What is wrong with the adapter there.

        A server that is lost meanwhile, or does not say, is brought up anew: then it loads whatever is published. That
        it is healthy is not enough, or requests for this adapter would wait for ever.
        """
        try:
            await server.load_adapter(published)
        except AdapterError as error:
            self._notice(str(error))
            return error
        except (Unreachable, Refused) as error:
            server.distrust(f"it did not load {published.name}: {error}")
        return None

    async def _answer(
        self, request: _Request, published: Published, prompt: tuple[int, ...], params: SamplingParams
    ) -> Generation:
        blocks = blocks_of(published.name, prompt)
        trouble: Exception | None = None
        for _ in range(_ATTEMPTS):
            server = await self._server_for(request, blocks)
            if server is None:
                return _ABORTED
            server.prefixes.add(blocks)
            rid = f"{self._run}/{request.id}!{published.served}!{next(self._numbers)}."
            request.at = (server, rid)
            try:
                reply = await server.generate(prompt, published, params, self._answers.end_ids, rid)
            except Unreachable as error:
                trouble = error
                continue
            except Refused as error:
                if published.served not in str(error):
                    raise SamplerError(f"request {request.id}: {server.name} refuses it: {error}") from None
                server.suspect(f"it does not know {published.name}: {error}")
                trouble = error
                continue
            finally:
                request.at = None
            if reply.meta_info.id != rid:
                raise SamplerError(f"request {request.id}: {server.name} answered another one, {reply.meta_info.id}")
            generation = self._answers.read(reply, params, request.id)
            if generation.finish_reason != "abort" or request.aborted.is_set():
                return generation
            trouble = Unreachable(f"{server.name} ended it by itself")
        raise SamplerError(f"request {request.id} failed {_ATTEMPTS} times, at last: {trouble}")

    async def _server_for(self, request: _Request, blocks: list[int]) -> Server | None:
        """The server to ask, as soon as there is one; None once the request is aborted."""
        while not request.aborted.is_set():
            fit = [server for server in self.servers if server.routable(request.adapter)]
            if fit:
                return choose(fit, blocks)
            if all(server.failure is not None for server in self.servers):
                reasons = "; ".join(str(server.failure) for server in self.servers)
                raise ServerError(f"request {request.id}: every server is lost for good: {reasons}")
            await self._wait_for_news(request.aborted)
        return None

    def _begin(self, request: _Request) -> None:
        if not self._open:
            self._busy_since = time.monotonic()
        self._open.add(request)
        self._users[request.adapter] = self._users.get(request.adapter, 0) + 1

    def _end(self, request: _Request) -> None:
        request.done.set()
        if len(self._open) == 1:
            self._busy_before = self.busy_seconds
        self._open.discard(request)
        self._users[request.adapter] -= 1
        self._forget_unused(request.adapter)

    def _forget_unused(self, adapter: str) -> None:
        if adapter in self._retired and adapter in self._live and self._users.get(adapter, 0) == 0:
            self._spawn(self._forget(self._live.pop(adapter)))

    async def _forget(self, published: Published) -> None:
        """Unload first, delete then: a server that is asked for an unloaded name reads the folder again."""
        holders = [server for server in self.servers if published.name in server.loaded]
        await asyncio.gather(*(server.unload_adapter(published) for server in holders))
        await asyncio.to_thread(published.forget)

    def _news(self) -> None:
        """Wake all who wait for a server."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_news(self, other: asyncio.Event | None = None) -> None:
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._changed, other) if event is not None]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._notice(f"a part of the sampler failed: {error!r}")

    def _loads_folders(self) -> bool:
        """Whether servers read adapters from files here: only those of this machine can."""
        if self._config.load != "auto":
            return self._config.load == "folder"
        return all(urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1") for url in self._config.urls)
