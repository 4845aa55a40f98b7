"""The SGLang sampler against servers that speak its wire format: routing, loss, proof, refusals, processes.

What real servers compute is tested by `make test-sglang`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mappa.config import SGLangConfig
from mappa.errors import AdapterError, ConfigError, SamplerError, ServerError
from mappa.model.base import Base, load_base
from mappa.model.lora import Adapter, RoleLinear, add_roles, new_adapter
from mappa.sampler.sglang.canary import Canary
from mappa.sampler.sglang.process import Launch, check_python
from mappa.sampler.sglang.routing import Prefixes, blocks_of, choose
from mappa.sampler.sglang.sampler import SGLangSampler
from mappa.sampler.sglang.wire import Client
from mappa.sampler.stopping import stops_at
from mappa.types import Generation, SamplingParams
from tests.ports import free_port
from tests.sampler.fake_sglang import FakeSGLang, scores, total

TARGETS = ("q_proj", "v_proj")
ROLES = ("solver", "coder")
PROMPT = tuple(range(20, 60))
ROOT = Path(__file__).resolve().parents[2]


class SumCanary(Canary):
    """The log-probs the fake servers give."""

    def __init__(self) -> None:
        self.tolerance = 1e-4

    async def score(self, role: str | None, adapter: Adapter | None) -> tuple[tuple[int, ...], tuple[float, ...]]:
        weights = (
            {}
            if adapter is None
            else {f"{k}{i}": t.detach().numpy() for k, p in adapter.items() for i, t in enumerate(p)}
        )
        return PROMPT[:9], tuple(scores(8, total(weights)))


class Rig:
    """A tiny base, an adapter per role, and what the sampler gave notice of."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.base: Base = load_base(str(folder), "float32")
        self.layers: Mapping[str, RoleLinear]
        _, self.layers = add_roles(self.base.model, TARGETS, 1, 2.0)
        self.logs = logs
        self.notices: list[str] = []
        self.launch = Launch(
            model=str(folder), dtype="float32", rank=4, targets=TARGETS, loras_per_batch=5, max_context=512, context=512
        )

    def adapter(self, seed: int, rank: int = 4) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        made = new_adapter(self.layers, rank, generator)
        for _, b in made.values():
            b.data.normal_(0, 0.1, generator=generator)
        return made

    @asynccontextmanager
    async def sampler(self, *servers: FakeSGLang, **settings: Any) -> AsyncIterator[SGLangSampler]:
        """Over the servers, with `solver@1` and `coder@1` published."""
        async with self.bare(urls=tuple(server.url for server in servers), **settings) as sampler:
            for seed, role in enumerate(ROLES):
                await sampler.publish(role, 1, self.adapter(seed))
            yield sampler

    @asynccontextmanager
    async def bare(self, **settings: Any) -> AsyncIterator[SGLangSampler]:
        # A busy machine may take seconds to answer: only where a server hangs on purpose is patience short.
        config = SGLangConfig(**{"health_interval": 0.1, "health_timeout": 20.0, "start_timeout": 60.0, **settings})
        opening = SGLangSampler.open(
            self.base, self.layers, config, self.launch, SumCanary(), logs=self.logs, notice=self.notices.append
        )
        async with opening as sampler:
            yield sampler

    def noticed(self, text: str) -> bool:
        return any(text in notice for notice in self.notices)


@pytest.fixture
def rig(tiny_model: Path, tmp_path: Path) -> Rig:
    return Rig(tiny_model, tmp_path / "logs")


@pytest.fixture
def servers() -> Any:
    made = [FakeSGLang(), FakeSGLang()]
    yield made
    for server in made:
        if server.alive:
            server.die()


def params(tokens: int = 4, **settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.6, "max_tokens": tokens, **settings})


def ask(sampler: SGLangSampler, role: str, id: str, prompt: tuple[int, ...] = PROMPT) -> asyncio.Task[Generation]:
    return asyncio.create_task(sampler.generate(prompt, f"{role}@1", params(), id))


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another thread or process, which sets no event here
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("load", ["folder", "tensors"])
def test_every_request_names_its_version_and_nothing_shapes_the_distribution(
    rig: Rig, servers: list[FakeSGLang], load: str
) -> None:
    async def run() -> None:
        async with rig.sampler(*servers, load=load) as sampler:
            results = [await ask(sampler, role, f"e/{role}/{i}") for role in ROLES for i in range(2)]
        for result in results:
            assert len(result.output_ids) == len(result.logprobs) == 4 and result.finish_reason == "length"
        assert results[0].logprobs == results[1].logprobs != results[2].logprobs

    asyncio.run(run())
    bodies = servers[0].seen + servers[1].seen
    assert len(bodies) == 4
    for body in bodies:
        assert body["lora_path"].startswith(("solver@1.", "coder@1.")) and body["lora_path"] in body["rid"]
        sampling = body["sampling_params"]
        assert (sampling["temperature"], sampling["top_p"], sampling["top_k"], sampling["min_p"]) == (0.6, 1.0, -1, 0.0)
    # What was published is taken away again from servers that are not ours.
    assert all(not server.adapters for server in servers)
    assert not list(Path("/dev/shm").glob(f"mappa-adapters-{os.getpid():x}*"))


def test_a_request_moves_when_its_server_dies(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        for server in servers:
            server.gate.clear()
        async with rig.sampler(*servers) as sampler:
            jobs = [ask(sampler, "solver", f"e/{i}", (*PROMPT, i)) for i in range(12)]
            await until(lambda: sum(len(server.seen) for server in servers) == 12)
            assert all(server.seen for server in servers)
            servers[1].gate.set()
            servers[0].die()
            results = await asyncio.gather(*jobs)
            assert all(result.finish_reason == "length" for result in results)
            assert len(servers[1].seen) == 12
            await until(lambda: rig.noticed("was lost"))
            await sampler.health()

    asyncio.run(run())


def test_a_hanging_server_is_left_by_deadline_and_by_health(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run(**settings: Any) -> None:
        async with rig.sampler(*servers, **settings) as sampler:
            first = ask(sampler, "solver", "e/0")
            await until(lambda: bool(servers[0].seen or servers[1].seen))
            hanging = servers[0] if servers[0].seen else servers[1]
            hanging.healthy.clear() if "deadline" not in settings else None
            for server in servers:
                if server is not hanging:
                    server.gate.set()
            assert (await first).finish_reason == "length"
            # The server is told to end what nobody waits for any more.
            await until(lambda: any(event.startswith("abort") for event in hanging.events) or not hanging.running)
            hanging.healthy.set()
            hanging.gate.set()

    for settings in ({"deadline": 0.5}, {"health_timeout": 0.5}):
        for server in servers:
            server.seen.clear()
            server.gate.clear()
        asyncio.run(run(**settings))


def test_a_server_that_comes_back_gets_the_adapters_before_any_request(rig: Rig) -> None:
    async def run() -> None:
        first = FakeSGLang(free_port())  # which nobody else is given while it is down
        async with rig.sampler(first) as sampler:
            first.die()
            waiting = ask(sampler, "solver", "e/0")
            await until(lambda: not sampler.servers[0].up)
            with pytest.raises(ServerError, match="being brought up"):
                await sampler.health()
            again = FakeSGLang(first.port)
            assert (await waiting).output_ids
            assert sorted(event.split(".")[0] for event in again.events) == ["load coder@1", "load solver@1"]
            assert not again.seen[0]["rid"].startswith("canary")
            # Somebody restarts it behind our back, too quickly to be missed: its adapters are.
            again.adapters.clear()
            assert (await ask(sampler, "coder", "e/1")).output_ids
            assert again.adapters
        again.die()

    asyncio.run(run())


def test_an_adapter_that_does_not_match_is_not_routed_to(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        async with rig.sampler(*servers) as sampler:
            servers[0].deaf = True
            await sampler.publish("solver", 2, rig.adapter(7))
            assert rig.noticed("does not serve adapter 'solver@2' as the learner has it")
            jobs = [sampler.generate((*PROMPT, i), "solver@2", params(), f"e/{i}") for i in range(8)]
            await asyncio.gather(*jobs)
            assert not servers[0].seen and len(servers[1].seen) == 8
            servers[1].deaf = True
            with pytest.raises(AdapterError, match="nats on average"):
                await sampler.publish("coder", 2, rig.adapter(8))
            with pytest.raises(AdapterError, match="not served"):
                await sampler.generate(PROMPT, "coder@2", params(), "x")
            with pytest.raises(AdapterError, match="never reused"):
                await sampler.publish("coder", 2, rig.adapter(8))
            assert (await sampler.generate(PROMPT, "coder@1", params(), "y")).output_ids

    asyncio.run(run())


def test_an_adapter_that_the_last_server_does_not_serve_is_refused(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        async with rig.sampler(*servers) as sampler:
            servers[0].die()
            servers[1].deaf = True
            with pytest.raises(AdapterError, match="nats on average"):
                await sampler.publish("solver", 2, rig.adapter(7))
            assert (await sampler.generate(PROMPT, "solver@1", params(), "x")).output_ids

    asyncio.run(run())


def test_a_version_is_unloaded_when_its_last_request_is_done(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        async with rig.sampler(*servers) as sampler:
            for server in servers:
                server.gate.clear()
            running = [ask(sampler, "solver", f"e/{i}", (*PROMPT, i)) for i in range(12)]
            await until(lambda: sum(server.running for server in servers) == 12)
            await sampler.publish("solver", 2, rig.adapter(5))
            await sampler.retire("solver@1")
            with pytest.raises(AdapterError, match="not served"):
                await sampler.generate(PROMPT, "solver@1", params(), "late")
            await asyncio.sleep(0.1)
            assert not any(event.startswith("unload") for server in servers for event in server.events)
            for server in servers:
                server.gate.set()
            assert all(result.output_ids for result in await asyncio.gather(*running))
            for server in servers:
                await until(lambda server=server: any(e.startswith("unload solver@1") for e in server.events))
            with pytest.raises(AdapterError, match="retired"):
                await sampler.publish("solver", 1, rig.adapter(0))

    asyncio.run(run())


def test_abort_by_prefix_and_cancellation(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        async with rig.sampler(*servers) as sampler:
            for server in servers:
                server.gate.clear()
            jobs = {name: ask(sampler, "solver", name) for name in ("1-a/solver/0", "1-ab/solver/0", "2/solver/0")}
            await until(lambda: sum(server.running for server in servers) == 3)
            await sampler.abort("1-a/")
            done = await jobs["1-a/solver/0"]
            assert done.finish_reason == "abort" and len(done.output_ids) == 2
            assert not jobs["1-ab/solver/0"].done()
            jobs["2/solver/0"].cancel()
            await until(lambda: sum(server.running for server in servers) == 1)
            for server in servers:
                server.gate.set()
            assert (await jobs["1-ab/solver/0"]).finish_reason == "length"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server: server.facts.update(enable_lora=False), "--enable-lora"),
        (lambda server: server.facts.update(max_lora_rank=2), "up to rank 2, learn.rank is 4"),
        (lambda server: server.facts.update(dp_size=2), "dp_size=2"),
        (lambda server: server.facts.update(context_length=256), "context of 256 tokens"),
        (lambda server: setattr(server, "tokenizer_shift", 1), "another tokenizer"),
        (lambda server: server.facts.pop("max_lora_rank"), None),
    ],
)
def test_a_server_that_is_not_fit_is_refused(
    rig: Rig, servers: list[FakeSGLang], change: Callable[[FakeSGLang], None], message: str | None
) -> None:
    async def run() -> None:
        async with rig.bare(urls=(servers[0].url,)):
            pass

    change(servers[0])
    if message is None:
        asyncio.run(run())
    else:
        with pytest.raises(ServerError, match=message):
            asyncio.run(run())


def test_impossible_requests_and_adapters_are_refused(rig: Rig, servers: list[FakeSGLang]) -> None:
    async def run() -> None:
        async with rig.sampler(*servers) as sampler:
            for prompt, tokens, message in (
                ((), 4, "empty"),
                ((5, 260), 4, "outside 0..259"),
                ((5,) * 500, 20, "max_context"),
                ((5,), 0, "max_context"),
            ):
                with pytest.raises(SamplerError, match=message):
                    await sampler.generate(prompt, "solver@1", params(tokens), "bad")
            with pytest.raises(AdapterError, match="rank 8, the servers take up to 4"):
                await sampler.publish("solver", 2, rig.adapter(1, rank=8))
            with pytest.raises(AdapterError, match="no weights for"):
                await sampler.publish("solver", 2, {})
            servers[0].max_rank = servers[1].max_rank = 2
            with pytest.raises(AdapterError, match="incompatible"):
                await sampler.publish("solver", 2, rig.adapter(1))

    asyncio.run(run())


def test_requests_of_one_beginning_meet_and_others_spread() -> None:
    class Place:
        def __init__(self) -> None:
            self.load = 0
            self.prefixes = Prefixes()

    places = [Place(), Place()]
    system = tuple(range(64))

    def go(task: int) -> Place:
        blocks = blocks_of("solver@1", system + (task,) * 40)
        place = choose(places, blocks)
        place.prefixes.add(blocks)
        place.load += 1
        return place

    for task in range(20):
        go(task)
    assert abs(places[0].load - places[1].load) <= 4 + 10
    for place in places:
        place.load = 5
    homes = {task: {go(task) for _ in range(2)} for task in range(100, 104)}
    assert all(len(home) == 1 for home in homes.values())
    # Another version's keys and values are other ones.
    assert blocks_of("solver@1", system) != blocks_of("solver@2", system)
    places[0].load, places[1].load = 30, 0
    assert go(0) is places[1]  # but not at any price


def test_a_text_ends_where_its_pattern_is_complete() -> None:
    pieces = ["``", "`py\n", "x = 1", "\n``", "`", " and", " more ```"]
    assert stops_at(r"```[\s\S]+```", pieces) == 5
    assert stops_at(r"```[\s\S]+```", pieces[:5]) == 5
    assert stops_at(r"```[\s\S]+```", pieces[:4]) is None
    assert stops_at(None, pieces) is None


class Launched:
    """`python -m sglang.launch_server` that is the fake, with a package's metadata beside it."""

    def __init__(self, folder: Path) -> None:
        package = folder / "path" / "sglang"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "launch_server.py").write_text("from tests.sampler.fake_sglang import main\nmain()\n")
        metadata = folder / "path" / "sglang-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0\n")
        self.settings: dict[str, Any] = {
            "python": sys.executable,
            "environment": {"PYTHONPATH": f"{folder / 'path'}:{ROOT}"},
        }


@pytest.fixture
def launched(tmp_path: Path) -> Launched:
    return Launched(tmp_path)


def test_our_own_servers_are_started_restarted_and_ended(rig: Rig, launched: Launched) -> None:
    async def run() -> list[int]:
        async with rig.sampler(servers=2, **launched.settings) as sampler:
            first, second = sampler.servers
            process = first._process
            assert process is not None
            os.killpg(process._process.pid, signal.SIGKILL)
            await until(lambda: not first.up)
            assert second.up and (await ask(sampler, "solver", "e/0")).output_ids
            await until(lambda: first.routable("solver@1") and first.routable("coder@1"))
            assert first._process is not process
            return [server._process._process.pid for server in (first, second) if server._process is not None]

    for pid in asyncio.run(run()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert rig.noticed("server 0 was lost")


def test_a_server_that_does_not_come_up_says_why(rig: Rig, launched: Launched) -> None:
    launched.settings["environment"]["FAKE_FAULT"] = "CUDA out of memory"

    async def run() -> None:
        async with rig.bare(**launched.settings):
            pass

    with pytest.raises(ServerError, match="ended while it came up[\\s\\S]*CUDA out of memory"):
        asyncio.run(run())


def test_a_request_that_meets_itself_has_met_no_server() -> None:
    """Where a server's port is one that the system gives to outgoing connections, a connection to it can be given that
    very port before the server listens: the client then reads its own request as the answer."""

    async def run() -> None:
        with socket.socket() as itself:
            itself.bind(("127.0.0.1", 0))
            itself.connect(itself.getsockname())
            address, port = itself.getsockname()
            await asyncio.to_thread(itself.sendall, b"GET /health_generate HTTP/1.1\r\n\r\n")
            assert await asyncio.to_thread(itself.recv, 4) == b"GET "

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        async with await asyncio.start_server(echo, address, port, reuse_address=True):
            client = Client(f"http://{address}:{port}")
            assert not await client.healthy(20)
            await client.close()

    asyncio.run(run())
    assert max(SGLangConfig().ports) < 32768


def test_one_server_takes_as_many_requests_as_come(servers: list[FakeSGLang]) -> None:
    """SGLang is what batches: no request waits on this side for a connection."""

    async def run() -> None:
        server = servers[0]
        server.adapters["solver@1"] = 0.0
        server.gate.clear()
        client = Client(server.url)
        jobs = [
            asyncio.create_task(client.generate(PROMPT, "solver@1", params(), [0], f"many/{i}", 60.0))
            for i in range(250)
        ]
        await until(lambda: server.running == len(jobs))
        server.gate.set()
        await asyncio.gather(*jobs)
        await client.close()

    asyncio.run(run())


TRAINER = """
import asyncio, sys
from pathlib import Path
from mappa.config import SGLangConfig
from mappa.sampler.sglang.process import Launch, ServerProcess

async def main(python, path, log):
    config = SGLangConfig(python=python, environment={"PYTHONPATH": path})
    launch = Launch(
        model="m", dtype="float32", rank=4, targets=("q_proj",), loras_per_batch=3, max_context=64, context=64
    )
    await ServerProcess.start(config, launch, 0, Path(log), set(), lambda: None)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_server_does_not_outlive_its_trainer(launched: Launched, tmp_path: Path) -> None:
    path = launched.settings["environment"]["PYTHONPATH"]
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, sys.executable, path, str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while len(_processes_with(path)) < 2:  # the guard and the server
        assert trainer.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    trainer.kill()
    trainer.wait()
    while left := _processes_with(path):
        assert time.monotonic() < deadline, f"{left} are still there"
        time.sleep(0.05)


def _processes_with(path: str) -> list[int]:
    """Processes that were started with `path` on their PYTHONPATH."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"PYTHONPATH={path}".encode() in environment:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs sampler.sglang.python or sampler.sglang.urls"),
        ({"python": "/no/such/python"}, "cannot be run"),
        ({"python": sys.executable}, "has no sglang .*make sglang"),
        ({"python": sys.executable, "gpus": (0, 1), "tp": 2, "servers": 2}, "need 4 GPUs, gpus names 2"),
    ],
)
def test_what_cannot_start_servers_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_python(SGLangConfig(**settings))
