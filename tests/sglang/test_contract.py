"""The whole contract of the SGLang sampler against two real servers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mappa.errors import AdapterError, ServerError
from mappa.types import Generation, SamplingParams
from tests.sglang.conftest import ROLES, Fleet, until

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1200)]
TOLERANCE = 1e-4


def prompt(i: int, tokens: int = 40) -> tuple[int, ...]:
    return tuple(2 + (7 * i + 3 * j) % 250 for j in range(tokens))


def params(tokens: int, temperature: float = 0.7, **settings: object) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=tokens, **settings)


def test_logprobs_are_the_learners_for_base_and_adapters_in_one_batch(fleet: Fleet) -> None:
    async def base(i: int) -> Generation:
        server = fleet.sampler.servers[i % 2]
        reply = await server.client.generate(prompt(i), None, params(24), (1,), f"base-{i}.", 120.0)
        logprobs, ids, _ = zip(*reply.meta_info.output_token_logprobs, strict=True)
        return Generation(output_ids=ids, logprobs=logprobs, finish_reason="length")

    async def run() -> None:
        names = [await fleet.publish(role) for role in ROLES]
        jobs = [(name, i, t) for name in names for i, t in enumerate((0.7, 1.0, 0.0))]
        results = await asyncio.gather(
            *(fleet.sampler.generate(prompt(i), name, params(24, t), f"e/{name}/{i}") for name, i, t in jobs),
            *(base(i) for i in range(2)),
        )
        for (name, i, temperature), result in zip(jobs, results[:-2], strict=True):
            assert result.output_ids and fleet.gap(name, prompt(i), result, temperature) <= TOLERANCE
        for i, result in enumerate(results[-2:]):
            assert fleet.gap(None, prompt(i), result, 0.7) <= TOLERANCE
        # The adapters do something, and each its own thing.
        assert len({result.output_ids for result in results[2:9:3]}) == 3

    fleet.run(run())


def test_a_stop_pattern_and_the_token_limit_end_a_text(fleet: Fleet) -> None:
    async def run() -> None:
        name = await fleet.publish("solver")
        one, other = await asyncio.gather(
            fleet.sampler.generate(prompt(3), name, params(5, 1.0), "short"),
            fleet.sampler.generate(prompt(3), name, params(300, 1.0, stop=r"[A-Za-z][\s\S]*[0-9]"), "stopped"),
        )
        # A random model draws the end of the text once in 250 tokens.
        ended = one.output_ids[-1] == 1
        assert one.finish_reason == ("stop" if ended else "length") and (ended or len(one.output_ids) == 5)
        assert other.finish_reason == "stop"
        text = "".join(fleet.base.text((token,)) for token in other.output_ids)
        assert text[-1].isdigit() or other.output_ids[-1] == 1
        assert fleet.gap(name, prompt(3), other, 1.0) <= TOLERANCE

    fleet.run(run())


def test_versions_change_under_load_and_no_request_fails(fleet: Fleet) -> None:
    """Twelve streams ask on and on while every role gets two new versions and loses two old ones."""

    async def run() -> None:
        current = {role: await fleet.publish(role) for role in ROLES}
        results: list[tuple[str, tuple[int, ...], Generation]] = []
        stop = asyncio.Event()

        async def stream(i: int) -> None:
            role, turn = ROLES[i % 3], 0
            while not stop.is_set():
                name, asked = current[role], prompt(i + 12 * turn)
                results.append((name, asked, await fleet.sampler.generate(asked, name, params(16), f"s/{i}/{turn}")))
                turn += 1

        streams = [asyncio.create_task(stream(i)) for i in range(12)]
        for _ in range(2):
            for role in ROLES:
                before, current[role] = current[role], await fleet.publish(role)
                await fleet.sampler.retire(before)
            done = len(results)
            await until(lambda done=done: len(results) > done + 12, 120)
        await until(lambda: {name for name, _, _ in results} >= set(current.values()), 120)
        stop.set()
        await asyncio.gather(*streams)
        assert max(fleet.gap(name, asked, result, 0.7) for name, asked, result in results) <= TOLERANCE
        # Old versions go from the servers, with their files, once their last request is done.
        for server in fleet.sampler.servers:
            await until(lambda server=server: all(name in fleet.sampler._live for name in server.loaded), 120)
            present = await server.client.adapters(60)
            served = {fleet.sampler._live[name].served for name in server.loaded}
            assert {name for name in present if "@" in name} == served
            assert sorted(f.name for f in fleet.sampler._shelf.path.iterdir() if f.name != "lock") == sorted(served)
        with pytest.raises(AdapterError, match="never reused"):
            await fleet.sampler.publish("solver", 1, fleet.adapters["solver@1"])

    fleet.run(run())


def test_abort_and_cancellation_end_requests_on_the_server(fleet: Fleet) -> None:
    async def run() -> None:
        name = await fleet.publish("coder")
        long = params(900, 2.0)
        jobs = [
            asyncio.create_task(fleet.sampler.generate(prompt(9), name, long, f"ep-1{c}/0")) for c in ("/", "0/", "1/")
        ]
        # One that draws the end at once is no longer counted.
        await until(lambda: sum(server.load for server in fleet.sampler.servers) + sum(j.done() for j in jobs) == 3, 30)
        await asyncio.sleep(1.0)
        await fleet.sampler.abort("ep-1/")
        aborted = await jobs[0]
        if len(aborted.output_ids) < 900 and aborted.output_ids[-1:] != (1,):  # it did not end by itself before
            assert aborted.finish_reason == "abort"
        for job in jobs[1:]:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        assert (await fleet.sampler.generate(prompt(1), name, params(3), "after")).output_ids

    fleet.run(run())


def test_a_paused_server_goes_on_where_it_was(fleet: Fleet) -> None:
    async def run() -> None:
        name = await fleet.publish("verifier")
        for server in fleet.sampler.servers:
            await server.client._post("/pause_generation", {"mode": "in_place"}, None, 60)
        job = asyncio.create_task(fleet.sampler.generate(prompt(2), name, params(8), "paused"))
        await asyncio.sleep(0.7)
        assert not job.done()
        for server in fleet.sampler.servers:
            await server.client._post("/continue_generation", {}, None, 60)
        assert fleet.gap(name, prompt(2), await job, 0.7) <= TOLERANCE

    fleet.run(run())


def test_a_server_killed_in_the_middle_loses_no_request_and_comes_back_complete(fleet: Fleet) -> None:
    async def run() -> None:
        name = await fleet.publish("solver")
        victim, other = fleet.sampler.servers
        jobs = [asyncio.create_task(fleet.sampler.generate(prompt(i), name, params(60), f"k/{i}")) for i in range(12)]
        await until(lambda: victim.load > 2 and other.load > 2, 30)
        await asyncio.sleep(0.3)
        pid = scheduler_of(victim._process._process.pid)
        os.kill(pid, signal.SIGKILL)  # the process that computes; the one that speaks HTTP still lives
        results = await asyncio.gather(*jobs)
        assert max(fleet.gap(name, prompt(i), result, 0.7) for i, result in enumerate(results)) <= TOLERANCE
        await until(lambda: victim.routable(name), 900)
        assert victim.loaded == set(fleet.sampler._live)
        assert any("server 0 was lost" in notice for notice in fleet.notices)
        again = [fleet.sampler.generate(prompt(i), name, params(12), f"again/{i}") for i in range(12)]
        results = await asyncio.gather(*again)
        assert max(fleet.gap(name, prompt(i), result, 0.7) for i, result in enumerate(results)) <= TOLERANCE

    fleet.run(run())


def scheduler_of(guard: int) -> int:
    """The scheduler among the processes of a guard's group."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == guard and b"sglang::scheduler" in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except (OSError, ProcessLookupError):
            continue
    raise AssertionError("the server has no scheduler")


def test_a_server_with_a_fault_of_the_config_says_so(fleet: Fleet, tmp_path: Path) -> None:
    """A wrong argument ends SGLang at once; what it said is in the error."""
    from mappa.config import SGLangConfig
    from mappa.sampler.sglang.process import Launch
    from mappa.sampler.sglang.sampler import SGLangSampler
    from tests.cpu_servers import cpu_servers

    settings = cpu_servers()
    config = SGLangConfig(**{**settings, "args": (*settings["args"], "--no-such-option")})
    launch = Launch(
        model=str(fleet.model),
        dtype="float32",
        rank=8,
        targets=("q_proj",),
        loras_per_batch=4,
        max_context=512,
        context=512,
    )

    async def run() -> None:
        async with SGLangSampler.open(
            fleet.base, fleet.layers, config, launch, fleet.sampler._canary, logs=tmp_path, notice=print
        ):
            pass

    with pytest.raises(ServerError, match="ended while it came up[\\s\\S]*no-such-option"):
        fleet.run(run())
