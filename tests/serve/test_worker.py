"""What becomes of those who wait when the thread that computes ends."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from mappa.config import LearnConfig
from mappa.errors import SamplerError
from mappa.model.base import load_base
from mappa.model.lora import add_roles
from mappa.sampler.engine import Request
from mappa.serve.worker import Worker
from mappa.types import SamplingParams


def test_whoever_waits_is_told_that_the_thread_has_ended(tiny_model: Path) -> None:
    """Also who asked at a time when it could not look: between its last look at the inbox and its end."""
    base = load_base(str(tiny_model), "float32")
    learn = LearnConfig(model=str(tiny_model))
    router, layers = add_roles(base.model, learn.targets, learn.first_layer, 1.0)
    worker = Worker(base, router, layers, learn, max_rows=4, gather=0.0, threads=1, exact=False)
    computing, asked = threading.Event(), threading.Event()

    def out_of_memory() -> NoReturn:
        computing.set()
        asked.wait(60)
        raise MemoryError("no room for a row")

    worker.engine.advance = out_of_memory  # type: ignore[method-assign]

    def request() -> Request:
        return Request("text/0", tuple(range(20, 30)), "base", SamplingParams(temperature=0.0, max_tokens=4))

    async def run() -> None:
        under_way = asyncio.create_task(worker.write(request))
        await asyncio.to_thread(computing.wait, 60)
        unread = [asyncio.create_task(work) for work in (worker.write(request), worker.do("lane", lambda: 1))]
        await asyncio.sleep(0)  # both are in the inbox
        asked.set()
        async with asyncio.timeout(60):
            for task in (under_way, *unread):
                with pytest.raises(SamplerError, match="worker stopped: MemoryError.*start the server again"):
                    await task
            with pytest.raises(SamplerError, match="worker stopped"):
                await worker.do("lane", lambda: 1)
        with pytest.raises(SamplerError, match="worker stopped"):
            worker.health()
        worker.close()

    asyncio.run(run())
