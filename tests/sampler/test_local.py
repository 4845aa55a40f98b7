"""The local sampler: exact log-probs, no dependence on guesses or neighbours, typed refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mappa.errors import AdapterError, SamplerError, ServerError
from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import Base, load_base
from mappa.model.lora import Adapter, Router, add_roles, new_adapter
from mappa.sampler.draft import Draft
from mappa.sampler.engine import Engine, Request, sample_tokens
from mappa.sampler.local import LocalSampler
from mappa.types import Generation, SamplingParams

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROLES = ("solver", "coder", "verifier")


class Served:
    """A sampler over a tiny model with three adapters that differ."""

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        self.base: Base = load_base(str(folder), "float32")
        self.router: Router
        self.router, self.layers = add_roles(self.base.model, TARGETS, 1, 2.0)
        generator = torch.Generator().manual_seed(0)
        self.adapters: dict[str, Adapter] = {}
        for role in ROLES:
            adapter = new_adapter(self.layers, 4, generator)
            for _, b in adapter.values():
                b.data.normal_(0, 0.1, generator=generator)
            self.adapters[role] = adapter
        self.sampler = LocalSampler(
            self.base, self.router, self.layers, max_rows=7, max_context=512, threads=1, exact=exact
        )

    def logprobs(self, role: str, prompt: tuple[int, ...], output: tuple[int, ...], temperature: float) -> torch.Tensor:
        """What a plain forward pass over the whole sequence gives."""
        ids = torch.tensor(prompt + output)
        with torch.inference_mode(), self.router.route([self.adapters[role]], [0, len(ids)]):
            plan = TreePlan([len(ids)], [-1])
            hidden = decode_layers(
                self.base.decoder, self.base.decoder.embed_tokens(ids)[None], torch.arange(len(ids)), plan
            )
            logits = F.linear(self.base.decoder.norm(hidden[0, len(prompt) - 1 : -1]), self.base.head)
        return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(output)[:, None])[:, 0]


@pytest.fixture(params=["tiny_model", "tiny_qwen"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    served = Served(request.getfixturevalue(request.param))
    yield served
    served.sampler.close()


def prompts(count: int) -> list[tuple[str, tuple[int, ...]]]:
    """(role, prompt): per role a shared beginning of 60 tokens, then a few of its own."""
    generator = torch.Generator().manual_seed(3)
    shared = {role: tuple(torch.randint(2, 260, (60,), generator=generator).tolist()) for role in ROLES}
    own = [tuple(torch.randint(2, 260, (3 + i % 4,), generator=generator).tolist()) for i in range(count)]
    return [(ROLES[i % 3], shared[ROLES[i % 3]] + own[i]) for i in range(count)]


async def generate_all(
    served: Served, jobs: list[tuple[str, tuple[int, ...]]], temperature: float = 0.5, tokens: int = 24
) -> list[Generation]:
    for role in ROLES:
        await served.sampler.publish(role, 1, served.adapters[role])
    return await asyncio.gather(
        *[
            served.sampler.generate(
                prompt, f"{role}@1", SamplingParams(temperature=temperature, max_tokens=tokens, seed=i), f"job/{i}"
            )
            for i, (role, prompt) in enumerate(jobs)
        ]
    )


@pytest.mark.parametrize("exact", [False, True])
def test_behaviour_logprobs_are_those_of_the_whole_sequence(tiny_qwen: Path, tiny_model: Path, exact: bool) -> None:
    for folder in (tiny_model, tiny_qwen):
        served = Served(folder, exact=exact)
        try:
            check_logprobs(served)
        finally:
            served.sampler.close()


def check_logprobs(served: Served) -> None:
    jobs = prompts(11)  # more than the rows there are
    results = asyncio.run(generate_all(served, jobs))
    for (role, prompt), result in zip(jobs, results, strict=True):
        assert len(result.output_ids) == len(result.logprobs)
        expected = served.logprobs(role, prompt, result.output_ids, 0.5)
        torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_a_request_gets_the_same_tokens_alone_and_in_company(served: Served) -> None:
    jobs = prompts(9)
    together = asyncio.run(generate_all(served, jobs))

    async def alone(i: int) -> Generation:
        role, prompt = jobs[i]
        params = SamplingParams(temperature=0.5, max_tokens=24, seed=i)
        return await served.sampler.generate(prompt, f"{role}@1", params, f"alone/{i}")

    for i in (0, 4, 8):
        assert asyncio.run(alone(i)).output_ids == together[i].output_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exact_engine_gives_the_same_bits_in_any_company(tiny_model: Path, dtype: str) -> None:
    base = load_base(str(tiny_model), dtype)
    router, layers = add_roles(base.model, TARGETS, 1, 2.0)
    generator = torch.Generator().manual_seed(0)
    adapters = {role: new_adapter(layers, 4, generator) for role in ROLES}
    for adapter in adapters.values():
        for _, b in adapter.values():
            b.data.normal_(0, 0.1, generator=generator)

    def run(waves: list[list[int]], max_rows: int) -> dict[str, Generation]:
        engine = Engine(base, router, max_rows=max_rows, exact=True)
        for role in ROLES:
            engine.add_adapter(role, adapters[role])
        jobs, done = prompts(9), {}
        while waves or engine.rows or engine.waiting:
            for index in waves.pop(0) if waves else ():
                role, prompt = jobs[index]
                params = SamplingParams(temperature=0.7, max_tokens=16, seed=index)
                engine.waiting.append(Request(str(index), prompt, role, params))
            done |= {request.id: request.generation() for request in engine.advance()}
        return done

    together = run([list(range(9))], 9)
    assert run([[8, 1, 2], [], [], [0, 7, 3, 4], [5, 6]], 4) == together
    assert run([list(range(9))], 1) == together


def test_guessing_changes_the_passes_and_not_the_text(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), "float32")
    router, layers = add_roles(base.model, TARGETS, 0, 2.0)
    phrase = tuple(range(40, 70))
    texts, passes = [], []
    for guessing in (True, False):
        engine = Engine(base, router, max_rows=4)
        engine.add_adapter("a@0", new_adapter(layers, 4, torch.Generator().manual_seed(0)))
        for seed in range(4):
            params = SamplingParams(temperature=0.0, max_tokens=250, seed=seed)
            request = Request(str(seed), (*phrase * 3, 70 + seed), "a@0", params)
            if not guessing:
                request.draft = _NoGuess()
            engine.waiting.append(request)
        done: list[Request] = []
        while engine.rows or engine.waiting:
            done += engine.advance()
        texts.append({request.id: request.ids for request in done})
        passes.append(engine.passes)
    assert texts[0] == texts[1]
    assert passes[0] < passes[1]  # a greedy tiny model ends up repeating itself


def test_guesses_are_what_followed_the_last_tokens_before() -> None:
    draft = Draft((1, 2, 3, 4, 5, 6, 1, 2))
    assert draft.guess(3) == [3, 4, 5]
    draft.add(9)
    assert draft.guess(3) == []
    for token in (5, 6):
        draft.add(token)
    assert draft.guess(2) == [1, 2]


class _NoGuess(Draft):
    def __init__(self) -> None:
        super().__init__(())

    def guess(self, limit: int) -> list[int]:
        return []


def test_greedy_takes_the_likeliest_and_reports_its_plain_logprob(served: Served) -> None:
    jobs = prompts(3)
    for (role, prompt), result in zip(jobs, asyncio.run(generate_all(served, jobs, temperature=0.0)), strict=True):
        expected = served.logprobs(role, prompt, result.output_ids, 1.0)
        torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -30.0]]).expand(20_000, 4)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ids, logprobs = sample_tokens(logits, torch.full((20_000,), 0.5), uniform)
    expected = torch.softmax(logits[0] / 0.5, -1)
    torch.testing.assert_close(torch.bincount(ids, minlength=4) / 20_000, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[ids], atol=1e-5, rtol=0)


@pytest.mark.parametrize("exponent", [24, 25, 26, 53])
def test_the_largest_random_numbers_pick_a_token_that_can_be(exponent: int) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 90:] = -200.0  # probability 0 in float32
    uniform = torch.tensor([1 - 2.0**-exponent], dtype=torch.float64)
    ids, logprobs = sample_tokens(logits, torch.ones(1), uniform)
    assert ids.tolist() == [89]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[:, 89])


def test_the_smallest_temperatures_take_the_likeliest() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)) * 10
    temperature = torch.tensor([1e-45, 1e-40, 1e-20, 1e-7])
    ids, logprobs = sample_tokens(logits, temperature, torch.tensor([0.0, 0.5, 0.99, 0.1], dtype=torch.float64))
    assert ids.tolist() == logits.argmax(-1).tolist()
    assert logprobs.tolist() == [0.0] * 4


def test_a_stop_pattern_and_the_token_limit_end_a_text(served: Served) -> None:
    async def run() -> tuple[Generation, Generation]:
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        short = SamplingParams(temperature=1.0, max_tokens=5, seed=1)
        stopped = SamplingParams(temperature=1.0, max_tokens=200, seed=1, stop=r"[A-Za-z0-9]")
        return (
            await served.sampler.generate((5, 6, 7), "solver@1", short, "a"),
            await served.sampler.generate((5, 6, 7), "solver@1", stopped, "b"),
        )

    cut, stopped = asyncio.run(run())
    assert cut.finish_reason == "length" and len(cut.output_ids) == 5
    assert stopped.finish_reason == "stop" and len(stopped.output_ids) < 200
    assert any(character.isalnum() for character in served.base.text(stopped.output_ids[-1:]))


def test_versions_are_immutable_and_never_reused(served: Served) -> None:
    async def run() -> None:
        sampler, params = served.sampler, SamplingParams(max_tokens=8, temperature=0.5)
        name = await sampler.publish("solver", 3, served.adapters["solver"])
        assert name == "solver@3"
        before = await sampler.generate((9, 8, 7), name, params, "a")
        for a, b in served.adapters["solver"].values():  # training goes on in place
            a.data.add_(1.0), b.data.add_(1.0)
        assert await sampler.generate((9, 8, 7), name, params, "b") == before
        with pytest.raises(AdapterError, match="never reused"):
            await sampler.publish("solver", 3, served.adapters["solver"])
        await sampler.retire(name)
        with pytest.raises(AdapterError, match="not served"):
            await sampler.generate((9, 8, 7), name, params, "c")
        with pytest.raises(AdapterError, match="retired"):
            await sampler.publish("solver", 3, served.adapters["solver"])

    asyncio.run(run())


def test_retiring_lets_running_requests_finish(served: Served) -> None:
    async def run() -> None:
        sampler = served.sampler
        name = await sampler.publish("solver", 1, served.adapters["solver"])
        params = SamplingParams(max_tokens=100, temperature=0.9)
        running = [asyncio.create_task(sampler.generate((9, i), name, params, f"r{i}")) for i in range(12)]
        await asyncio.sleep(0)
        await sampler.retire(name)
        assert all(result.output_ids for result in await asyncio.gather(*running))
        await sampler.health()

    asyncio.run(run())


def test_abort_by_prefix_and_cancellation(served: Served) -> None:
    async def run() -> None:
        sampler = served.sampler
        served.base.end_ids = frozenset()  # nothing ends these texts but the token limit
        await sampler.publish("solver", 1, served.adapters["solver"])
        params = SamplingParams(max_tokens=400, temperature=1.5)
        job = asyncio.create_task(sampler.generate((9, 8), "solver@1", params, "episode-1/solver/0"))
        other = asyncio.create_task(sampler.generate((9, 7), "solver@1", params, "episode-2/solver/0"))
        await asyncio.sleep(0.05)
        await sampler.abort("episode-1/")
        assert (await job).finish_reason == "abort"
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        short = SamplingParams(max_tokens=3)
        assert await sampler.generate((9, 8), "solver@1", short, "after")

    asyncio.run(run())


def test_cancelling_a_request_leaves_those_whose_ids_begin_like_it(served: Served) -> None:
    async def run() -> None:
        served.base.end_ids = frozenset()
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        ids = ("episode/coder/1", "episode/coder/10", "episode/coder/11")
        tasks = [
            asyncio.create_task(
                served.sampler.generate((9, 8), "solver@1", SamplingParams(max_tokens=300, temperature=1.5), id)
            )
            for id in ids
        ]
        await asyncio.sleep(0.05)
        tasks[0].cancel()
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        assert [(one.finish_reason, len(one.output_ids)) for one in others if isinstance(one, Generation)] == [
            ("length", 300)
        ] * 2

    asyncio.run(run())


def test_a_loop_that_is_gone_does_not_stop_the_sampler(served: Served) -> None:
    """Its last request is cancelled with it, and nobody is there to be told."""

    async def leave() -> None:
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        served.base.end_ids = frozenset()
        task = asyncio.create_task(served.sampler.generate((9, 8), "solver@1", SamplingParams(max_tokens=400), "a"))
        await asyncio.sleep(0.05)
        del task

    async def come_back() -> Generation:
        return await served.sampler.generate((9, 8), "solver@1", SamplingParams(max_tokens=3), "b")

    asyncio.run(leave())
    assert len(asyncio.run(come_back()).output_ids) == 3


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [((), 4, "empty"), ((5, 260), 4, "outside 0..259"), ((5,) * 500, 20, "max_context"), ((5,), 0, "max_context")],
)
def test_impossible_requests_are_refused(served: Served, prompt: tuple[int, ...], tokens: int, message: str) -> None:
    async def run() -> None:
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        await served.sampler.generate(prompt, "solver@1", SamplingParams(max_tokens=tokens), "bad")

    with pytest.raises(SamplerError, match=message):
        asyncio.run(run())


def test_a_failing_engine_fails_its_requests_and_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        # A base whose head has vanished: the engine's thread meets an error of torch's in the middle of a pass.
        monkeypatch.setattr(served.base, "head", torch.empty(0, 0))
        with pytest.raises(SamplerError, match="stopped"):
            await served.sampler.generate((5, 6), "solver@1", SamplingParams(max_tokens=4), "x")
        await check_that_it_has_stopped(served)

    asyncio.run(run())


def test_a_closed_sampler_fails_what_is_asked_of_it(served: Served) -> None:
    async def run() -> None:
        served.base.end_ids = frozenset()
        await served.sampler.publish("solver", 1, served.adapters["solver"])
        params = SamplingParams(max_tokens=400)
        under_way = asyncio.create_task(served.sampler.generate((5, 6), "solver@1", params, "x"))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(served.sampler.close)
        with pytest.raises(ServerError, match="closed"):
            await under_way
        await check_that_it_has_stopped(served)

    asyncio.run(run())


async def check_that_it_has_stopped(served: Served) -> None:
    """Whatever is asked is refused at once."""
    sampler = served.sampler
    for asked in (
        sampler.health(),
        sampler.generate((5, 6), "solver@1", SamplingParams(max_tokens=4), "y"),
        sampler.publish("solver", 2, served.adapters["solver"]),
        sampler.abort("y"),
    ):
        async with asyncio.timeout(10):
            with pytest.raises(ServerError, match="stopped"):
                await asked
