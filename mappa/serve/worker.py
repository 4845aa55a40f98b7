"""The one thread that computes: training passes of many models together, and decoding in between.

Work comes in lanes, one per model. Within a lane everything happens in the order it was asked for; what stands at the
heads of different lanes has met, and trains in one step. Between the passes of a step the sampler gets as much time as
the last pass took, so that neither side waits for the whole of the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from mappa.config import LearnConfig
from mappa.errors import MappaError, SamplerError
from mappa.model.base import Base
from mappa.model.lora import RoleLinear, Router
from mappa.sampler.engine import Engine, Request
from mappa.serve.model import ModelWeights
from mappa.serve.step import Step, TrainRequest, TrainResult

T = TypeVar("T")


class Job:
    """Something to do on the thread, and who waits for it. Training that `prepare` returns is done with others'."""

    def __init__(self, prepare: Callable[[], Any]) -> None:
        self.prepare = prepare
        self.request: TrainRequest | None = None
        self.since = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self._loop.create_future()

    def answer(self, value: Any) -> None:
        self._loop.call_soon_threadsafe(_settle, self.done, value, None)

    def fail(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(_settle, self.done, None, error)


class Worker:
    """Runs lanes of jobs and an `Engine` on a thread of its own. Its methods are for the event loop."""

    def __init__(
        self,
        base: Base,
        router: Router,
        layers: Mapping[str, RoleLinear],
        learn: LearnConfig,
        *,
        max_rows: int,
        gather: float,
        threads: int,
        exact: bool,
    ) -> None:
        self.engine = Engine(base, router, max_rows=max_rows, exact=exact)
        self._base, self._router, self._learn = base, router, learn
        self._blank = ModelWeights({}, layers, rank=learn.rank, limit=learn.rank, alpha=1.0)
        self._gather = gather
        self._threads = threads
        self._inbox: queue.SimpleQueue[tuple[Callable[[], None], Job | None] | None] = queue.SimpleQueue()
        """What the thread is to do, and who waits for it; None: stop."""
        self._lanes: dict[str, deque[Job]] = {}
        self._step: tuple[Step, list[tuple[str, Job]], Iterator[None]] | None = None
        self._writing: dict[Request, Job] = {}
        self._ended: SamplerError | None = None
        self._thread = threading.Thread(target=self._run, name="serve-worker", daemon=True)
        self._thread.start()

    async def do(self, lane: str, work: Callable[[], T]) -> T:
        """Run `work` when all that was asked of the lane before is done, and return what it returns."""
        return await self._put(lane, Job(work))

    async def train(self, lane: str, prepare: Callable[[], TrainRequest]) -> TrainResult:
        """The same for training; `prepare` says what is to be computed, when it is this request's turn."""
        return await self._put(lane, Job(prepare))

    async def write(self, make: Callable[[], Request]) -> Request:
        """Have the continuation that `make` returns written, up to its end or until it is aborted."""
        job = Job(make)

        def begin() -> None:
            try:
                request = make()
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                job.fail(error)
                return
            self._writing[request] = job
            self.engine.waiting.append(request)

        return await self._send(job, begin)

    def abort(self, prefix: str) -> None:
        """End the continuations whose id starts with `prefix`."""
        self._inbox.put((lambda: self._written(self.engine.abort(prefix)), None))

    def health(self) -> None:
        """Raises SamplerError where the thread has ended."""
        if self._ended is not None:
            raise self._ended

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _put(self, lane: str, job: Job) -> asyncio.Future[Any]:
        return self._send(job, lambda: self._lanes.setdefault(lane, deque()).append(job))

    def _send(self, job: Job, begin: Callable[[], None]) -> asyncio.Future[Any]:
        self._inbox.put((begin, job))
        if self._ended is not None:  # looked at last: the thread may have ended before it could read this
            job.fail(self._ended)
        return job.done

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        why = "it was closed"
        try:
            while self._take_messages():
                self._run_calls()
                started = time.monotonic()
                self._train()
                self._decode(time.monotonic() - started)
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            why = repr(error)
        self._ended = SamplerError(f"the server's worker stopped: {why}; start the server again")
        for job in [*self._writing.values(), *(job for lane in self._lanes.values() for job in lane), *self._unread()]:
            job.fail(self._ended)

    def _unread(self) -> Iterator[Job]:
        """Who waits for what is still in the inbox."""
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get_nowait()
                if message is not None and message[1] is not None:
                    yield message[1]

    def _take_messages(self) -> bool:
        """Carry out what was asked for; wait where there is nothing else to do. False: stop."""
        while True:
            wait = self._idle_for()
            try:
                message = self._inbox.get(timeout=wait) if wait != 0 else self._inbox.get_nowait()
            except queue.Empty:
                return True
            if message is None:
                return False
            message[0]()

    def _idle_for(self) -> float | None:
        """Seconds that may be waited for messages; None: for ever."""
        if self._step is not None or self.engine.rows or self.engine.waiting:
            return 0
        waiting = self._ready()
        if any(job.request is None for _, job in waiting):
            return 0
        if waiting:  # others may come to join
            return max(0, min(job.since for _, job in waiting) + self._gather - time.monotonic())
        return None

    def _ready(self) -> list[tuple[str, Job]]:
        """The heads of all lanes that are not in the step under way."""
        busy = {lane for lane, _ in self._step[1]} if self._step is not None else set()
        return [(name, lane[0]) for name, lane in self._lanes.items() if lane and name not in busy]

    def _run_calls(self) -> None:
        """Do what stands at the heads of lanes, up to the next training of each."""
        while calls := [(lane, job) for lane, job in self._ready() if job.request is None]:
            for lane, job in calls:
                try:
                    found = job.prepare()
                except Exception as error:  # noqa: BLE001 - handed to whoever asked
                    self._leave(lane)
                    job.fail(error)
                    continue
                if isinstance(found, TrainRequest):
                    job.request, job.since = found, time.monotonic()
                else:
                    self._leave(lane)
                    job.answer(found)

    def _train(self) -> None:
        """Begin a step of what has met, or do the next pass of the one under way."""
        if self._step is None:
            waiting = [(lane, job) for lane, job in self._ready() if job.request is not None]
            if not waiting or time.monotonic() < min(job.since for _, job in waiting) + self._gather:
                return
            first = min(waiting, key=lambda pair: pair[1].since)[1].request
            assert first is not None
            chosen = [(lane, job) for lane, job in waiting if job.request and job.request.backward == first.backward]
            requests = [job.request for _, job in chosen if job.request]
            step = Step(requests, self._base, self._router, self._blank, self._learn)
            self._step = step, chosen, step.passes()
        step, chosen, passes = self._step
        try:
            next(passes)
            return
        except StopIteration:
            for (lane, job), result in zip(chosen, step.results, strict=True):
                self._leave(lane)
                job.answer(result)
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            for result in step.results:
                result.request.model.discard()
            for lane, job in chosen:
                self._leave(lane)
                job.fail(error)
        self._step = None

    def _decode(self, seconds: float) -> None:
        """Write on for about so long, a token for every row at least."""
        until = time.monotonic() + seconds
        while self.engine.rows or self.engine.waiting:
            self._written(self.engine.advance())
            if time.monotonic() >= until:
                return

    def _written(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._writing.pop(request).answer(request)

    def _leave(self, lane: str) -> None:
        self._lanes[lane].popleft()
        if not self._lanes[lane]:
            del self._lanes[lane]


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(
            error if isinstance(error, MappaError) else SamplerError(f"{type(error).__name__}: {error}")
        )
