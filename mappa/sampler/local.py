"""The embedded sampler: an `Engine` on a thread of its own behind the asyncio `Sampler` protocol."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mappa.errors import AdapterError, SamplerError, ServerError
from mappa.model.base import Base
from mappa.model.lora import RoleLinear, Router, check_adapter
from mappa.sampler import adapter_name
from mappa.sampler.engine import Engine, Request
from mappa.types import Generation, SamplingParams


class LocalSampler:
    """Generates in this process with the base and LoRA layers that the learner trains.

    The learner must not run a forward pass while requests are open: both go through the same layers. Synchronous
    training keeps to that by itself; `idle` says whether it holds.
    """

    def __init__(
        self,
        base: Base,
        router: Router,
        layers: Mapping[str, RoleLinear],
        *,
        max_rows: int,
        max_context: int,
        threads: int,
        exact: bool = False,
    ) -> None:
        self._engine = Engine(base, router, max_rows=max_rows, exact=exact)
        self._layers = layers
        self._vocabulary = base.vocabulary
        self._max_context = max_context
        self._threads = threads
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[object, tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}
        """Who waits for a request, or for another thing that was asked of the thread."""
        self._lock = threading.Lock()
        """Held to add to `_open` and the inbox: either the thread sees both, or whoever asks sees that it stopped."""
        self._stopped = False
        self._users: dict[str, int] = {}
        self._retired: set[str] = set()
        self._failure: BaseException | None = None
        self.busy_seconds = 0.0
        """Wall time spent generating."""
        self._thread = threading.Thread(target=self._serve, name="local-sampler", daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> int:
        """Tokens sampled since the start."""
        return self._engine.tokens

    async def generate(
        self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str
    ) -> Generation:
        """Sample one continuation (see `Sampler.generate`)."""
        self._check(prompt_ids, adapter, params, request_id)
        request = Request(request_id, tuple(prompt_ids), adapter, params)
        future: asyncio.Future[Generation] = self._ask(request, lambda: self._engine.waiting.append(request))
        self._users[adapter] = self._users.get(adapter, 0) + 1
        try:
            return await future
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._close(self._engine.cancel(request)))
            raise
        finally:
            self._users[adapter] -= 1
            self._forget_unused(adapter)

    async def publish(self, role: str, version: int, tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
        """Copy a version's weights in and return its name."""
        name = adapter_name(role, version)
        check_adapter(self._layers, tensors, name)
        if name in self._retired:
            raise AdapterError(f"adapter {name!r} was retired; a name is never reused, publish the next version")
        await self._call(lambda: self._engine.add_adapter(name, tensors))
        return name

    async def retire(self, adapter: str) -> None:
        """Refuse new requests for a version, and forget it when the running ones are done."""
        if adapter not in self._engine.adapters:
            raise AdapterError(f"adapter {adapter!r} is not published; published: {sorted(self._engine.adapters)}")
        self._retired.add(adapter)
        self._forget_unused(adapter)

    async def abort(self, prefix: str) -> None:
        await self._call(lambda: self._close(self._engine.abort(prefix)))

    async def health(self) -> None:
        if self._stopped:
            raise self._gone()

    def close(self) -> None:
        """Stop the thread. Open requests fail."""
        self._inbox.put(None)
        self._thread.join()

    def _check(self, prompt_ids: tuple[int, ...], adapter: str, params: SamplingParams, request_id: str) -> None:
        if self._stopped:
            raise self._gone()
        if adapter not in self._engine.adapters or adapter in self._retired:
            served = sorted(set(self._engine.adapters) - self._retired)
            raise AdapterError(f"request {request_id}: adapter {adapter!r} is not served; served: {served}")
        if not prompt_ids or min(prompt_ids) < 0 or max(prompt_ids) >= self._vocabulary:
            raise SamplerError(
                f"request {request_id}: the prompt is empty or has ids outside 0..{self._vocabulary - 1}"
            )
        if params.max_tokens < 1 or len(prompt_ids) + params.max_tokens > self._max_context:
            raise SamplerError(
                f"request {request_id}: {len(prompt_ids)} prompt tokens and {params.max_tokens} to write do not fit "
                f"sampler.max_context={self._max_context}"
            )

    def _forget_unused(self, adapter: str) -> None:
        if adapter in self._retired and self._users.get(adapter, 0) == 0:
            self._inbox.put(lambda: self._engine.drop_adapter(adapter))

    async def _call(self, work: Callable[[], None]) -> None:
        """Run `work` on the engine's thread and wait for it. Raises ServerError where the thread has stopped."""
        call = object()

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - handed to whoever asked, on their thread
                self._tell(call, _fail, error)
            else:
                self._tell(call, _answer, None)

        await self._ask(call, run)

    def _ask(self, key: object, work: Callable[[], None]) -> asyncio.Future[Any]:
        """Have the thread do `work`. What is returned is settled by `_tell` with `key`, or when the thread stops."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            if self._stopped:
                raise self._gone()
            self._open[key] = (loop, future)
            self._inbox.put(work)
        return future

    def _tell(self, key: object, settle: Callable[[asyncio.Future[Any], Any], None], value: object) -> None:
        with self._lock:
            loop, future = self._open.pop(key)
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(settle, future, value)

    def _gone(self) -> ServerError:
        if self._failure is None:
            return ServerError("the local sampler stopped: it was closed; open another")
        return ServerError(
            f"the local sampler stopped: {self._failure!r}; start the run again, it goes on where it was"
        )

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while self._take_messages():
                started = time.monotonic()
                self._close(self._engine.advance())
                self.busy_seconds += time.monotonic() - started
        except BaseException as error:  # noqa: BLE001 - every open request is failed with it
            self._failure = error
        finally:
            with self._lock:
                self._stopped = True
                left = list(self._open)
            for key in left:
                self._tell(key, _fail, self._gone())

    def _take_messages(self) -> bool:
        """Carry out what was asked for; wait for something to do when there is nothing. False: stop."""
        idle = not self._engine.rows and not self._engine.waiting
        while idle or not self._inbox.empty():
            work = self._inbox.get()
            if work is None:
                return False
            work()
            idle = False
        return True

    def _close(self, requests: list[Request]) -> None:
        for request in requests:
            self._tell(request, _answer, request.generation())


def _answer(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
