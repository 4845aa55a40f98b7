"""Publishing under load: three rank-16 adapters to two SGLang CPU servers while streams run on both.

    python -m bench.publish [--quick] [--json PATH]

Windows without and with publishing take turns, so that a slow minute of the machine falls on both. A gap is the time
between two tokens of one stream as the client sees them. In a window with publishing the three roles get new versions
one after the other, again and again, requests move on to them, and the old ones are unloaded; the two routes, files in
/dev/shm and tensors within the request, take turns. Full: SmolLM2-135M in float32; --quick: a tiny model. Either way
two servers have to start first, a minute or more on two cores. It needs `make sglang`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import httpx
import torch
from msgspec import Struct

from bench.harness import Row, compare, environment, finish, parser, unmeasured
from mappa.config import SGLangConfig, cache_home
from mappa.model.base import load_base
from mappa.model.lora import Adapter, add_roles, new_adapter
from mappa.model.smollm2 import smollm2_folder
from mappa.sampler.sglang.canary import Canary
from mappa.sampler.sglang.process import Launch
from mappa.sampler.sglang.sampler import SGLangSampler
from mappa.types import SamplingParams

RANK, CONTEXT = 16, 1024
ROLES = ("engineer", "modeler", "analyst")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROUTES = ("folder", "tensors")


class Shape(Struct, frozen=True):
    """How much is measured: streams and requests at a time, window length in seconds, windows of each kind."""

    streams: int
    requests: int
    tokens: int
    window: float
    windows: int


FULL = Shape(streams=8, requests=4, tokens=48, window=45.0, windows=4)
QUICK = Shape(streams=8, requests=4, tokens=64, window=4.0, windows=4)


@dataclass
class Seen:
    """What one kind of window showed."""

    gaps: list[float] = field(default_factory=list)
    done: int = 0
    failed: list[str] = field(default_factory=list)


class Load:
    """Streams on every server and requests through the sampler, on and on; results go to the window of the moment."""

    def __init__(self, shape: Shape, samplers: dict[str, SGLangSampler], vocabulary: int) -> None:
        self.shape = shape
        self.samplers = samplers
        self.seen = {"still": Seen(), **{route: Seen() for route in ROUTES}}
        self.window = "still"
        self.route = ROUTES[0]
        self.current: dict[str, str] = {}
        self._vocabulary = vocabulary
        self._numbers = itertools.count()

    def prompt(self, number: int) -> tuple[int, ...]:
        return tuple(5 + (11 * number + 3 * place) % (self._vocabulary - 10) for place in range(48))

    async def stream(self, http: httpx.AsyncClient, url: str, adapter: str) -> None:
        """One text after the other with an adapter that stays, timing its tokens."""
        while True:
            number = next(self._numbers)
            sampling = {"temperature": 1.0, "max_new_tokens": self.shape.tokens, "ignore_eos": True}
            body = {"input_ids": self.prompt(number), "lora_path": adapter, "sampling_params": sampling, "stream": True}
            seen, last, tokens = self.seen[self.window], 0.0, 0
            try:
                async with http.stream("POST", f"{url}/generate", json=body, timeout=600.0) as answer:
                    async for line in answer.aiter_lines():
                        if not line.startswith("data: {"):
                            continue
                        now, seen = time.perf_counter(), self.seen[self.window]
                        if last:
                            seen.gaps.append(now - last)
                        last, tokens = now, json.loads(line[6:])["meta_info"]["completion_tokens"]
                self._count(seen, "" if tokens == self.shape.tokens else f"a stream ended after {tokens} tokens")
            except (httpx.HTTPError, KeyError, ValueError) as error:
                self._count(seen, repr(error))

    async def request(self, role: str) -> None:
        """One request after the other with the role's newest version."""
        while True:
            number = next(self._numbers)
            params = SamplingParams(temperature=1.0, max_tokens=self.shape.tokens, seed=number)
            name = self.current[role]
            try:
                await self.samplers[self.route].generate(self.prompt(number), name, params, f"bench/{number}")
                self._count(self.seen[self.window], "")
            except Exception as error:  # noqa: BLE001 - every failure is what is counted here
                self._count(self.seen[self.window], repr(error))

    def _count(self, seen: Seen, fault: str) -> None:
        seen.done += 1
        if fault:
            seen.failed.append(fault)


class Publisher:
    """New versions of every role by either route, with what each round of the three took, seconds."""

    def __init__(self, load: Load, adapters: Sequence[Adapter]) -> None:
        self.load = load
        self.adapters = itertools.cycle(adapters)
        self.seconds: dict[str, list[float]] = {route: [] for route in ROUTES}
        self._versions = itertools.count(1)

    async def publish(self, route: str) -> None:
        """All roles once; requests move on to the new versions, the route's old ones are retired."""
        sampler, version = self.load.samplers[route], next(self._versions)
        begin = time.perf_counter()
        names = {role: await sampler.publish(role, version, next(self.adapters)) for role in ROLES}
        self.seconds[route].append(time.perf_counter() - begin)
        before, self.load.current = self.load.current, names
        old, self.load.route = self.load.route, route
        for name in before.values():
            await self.load.samplers[old].retire(name)


async def measure(model: Path, shape: Shape) -> tuple[Load, Publisher]:
    base = load_base(str(model), "float32")
    router, layers = add_roles(base.model, TARGETS, 0, 2.0)
    generator = torch.Generator().manual_seed(0)
    adapters = []
    for _ in range(6):
        adapter = new_adapter(layers, RANK, generator)
        for _, b in adapter.values():
            b.data.normal_(0, 0.01, generator=generator)
        adapters.append(adapter)
    launch = Launch(
        model=str(model),
        dtype="float32",
        rank=RANK,
        targets=TARGETS,
        loras_per_batch=8,
        max_context=CONTEXT,
        context=CONTEXT,
    )
    canary = Canary(base, router, {role: tuple(range(10 + 9 * i, 74 + 9 * i)) for i, role in enumerate((*ROLES, "s"))})
    cpu_servers = import_module("tests.cpu_servers").cpu_servers
    with tempfile.TemporaryDirectory() as logs:
        async with AsyncExitStack() as stack:

            async def open_(config: SGLangConfig) -> SGLangSampler:
                opening = SGLangSampler.open(base, layers, config, launch, canary, logs=Path(logs), notice=_show)
                return await stack.enter_async_context(opening)

            first = await open_(SGLangConfig(servers=2, load="folder", **cpu_servers()))
            urls = tuple(server.client.url for server in first.servers)
            samplers = {"folder": first, "tensors": await open_(SGLangConfig(urls=urls, load="tensors"))}
            load = Load(shape, samplers, base.vocabulary)
            publisher = Publisher(load, adapters)
            await first.publish("s", 1, adapters[0])
            served = first.served_name("s@1")
            await publisher.publish("folder")
            http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
            tasks = [
                asyncio.create_task(load.stream(http, url, served)) for url in urls for _ in range(shape.streams // 2)
            ]
            tasks += [asyncio.create_task(load.request(ROLES[i % 3])) for i in range(shape.requests)]
            await asyncio.sleep(shape.window / 2)  # the first texts, before anything is counted
            load.seen["still"] = Seen()
            publisher.seconds["folder"].clear()
            for _ in range(shape.windows):
                for route in ROUTES:
                    await still_then_publishing(load, publisher, route, shape.window)
            load.window = "still"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return load, publisher


async def still_then_publishing(load: Load, publisher: Publisher, route: str, seconds: float) -> None:
    load.window = "still"
    await asyncio.sleep(seconds / 2)
    load.window, end = route, time.perf_counter() + seconds
    while time.perf_counter() < end:
        await publisher.publish(route)
        await asyncio.sleep(min(1.0, seconds / 4))


def rows_of(load: Load, publisher: Publisher) -> list[Row]:
    seen, still = load.seen, load.seen["still"]
    publishing = Seen([gap for route in ROUTES for gap in seen[route].gaps])
    failed, done = sum(len(s.failed) for s in seen.values()), sum(s.done for s in seen.values())
    rounds = {route: len(publisher.seconds[route]) for route in ROUTES}
    rows = [
        compare(
            "failed requests", failed, done, "all", "", "<= 0", note=f"{3 * sum(rounds.values())} adapters published"
        ),
        compare(
            "gap between tokens, 99th percentile",
            _quantile(publishing.gaps, 0.99) * 1e3,
            _quantile(still.gaps, 0.99) * 1e3,
            "without publishing",
            "ms",
            "<= 1.1",
            note="a tenth is noise",
        ),
        compare("longest gap", max(publishing.gaps) * 1e3, max(still.gaps) * 1e3, "without publishing", "ms"),
    ]
    folder, tensors = (publisher.seconds[route] for route in ROUTES)
    middle = statistics.median
    rows.append(compare("publish 3 adapters, median", middle(folder) * 1e3, middle(tensors) * 1e3, "tensors", "ms"))
    rows.append(compare("publish 3 adapters, slowest", max(folder) * 1e3, max(tensors) * 1e3, "tensors", "ms"))
    return rows


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    cpu = import_module("tests.cpu_servers")
    if not cpu.PYTHON.exists():
        finish("publish", [unmeasured("publish 3 adapters", "tensors", "run `make sglang` first")], arguments.json)
        return
    torch.set_num_threads(1)
    env = environment(("torch", "httpx"))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            model = import_module("tests.tiny").write_tiny_model(Path(folder), intermediate_size=96)
        else:
            model = smollm2_folder(cache_home())
        load, publisher = asyncio.run(measure(model, QUICK if arguments.quick else FULL))
    for fault in [fault for seen in load.seen.values() for fault in seen.failed][:5]:
        _show(f"failed: {fault}")
    finish("publish", rows_of(load, publisher), arguments.json, env)


if __name__ == "__main__":
    main()
