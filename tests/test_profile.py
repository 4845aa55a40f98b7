"""The profile: costs against hand-worked ones, servers that conserve work, designs that keep to their config."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench import profile
from bench.parts import virtual
from bench.parts.profile_design import causes, design_of, overlapped, published
from bench.parts.profile_engine import Engine, Gpu, busy, learn_on
from bench.parts.profile_fit import Fitted, Past, Watched, fit_decoding
from bench.parts.profile_learner import Learning, plan_update
from bench.parts.profile_node import Cost, GpuCost, Node, Work, kv_bytes, node_from, prompt_work
from bench.parts.profile_replay import calibrated, predict, prediction_rows
from bench.parts.profile_report import chain_rows, gain, gantt, trace
from bench.parts.profile_result import History, Simulated
from bench.parts.profile_search import Candidate, attempt
from bench.parts.profile_simulation import Job, simulate
from bench.parts.profile_workload import Workload, habits_of
from mappa.config import LearnConfig, load_config, override
from mappa.errors import ConfigError, JournalError
from mappa.journal import Span
from mappa.learn.shape import SHAPES
from mappa.observe.metrics import Seconds, StepMetrics
from mappa.sampler.sglang.routing import blocks_of
from mappa.systems import team_of
from mappa.types import Action, Episode, Sample

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = ["rollout.episodes=2", "tasks.train_tasks=4"]


def job(*settings: str, node: Node | None = None) -> Job:
    config = load_config(CONFIGS / "dsbench-qwen3-4b-8gpu.toml", [*SMALL, *settings])
    system = team_of(config)
    workload = Workload(config, system.roles, habits_of(config.system))
    return Job(
        config=config,
        system=system,
        shape=SHAPES["4B"],
        node=node or Node(),
        workload=workload,
        tasks=workload.tasks(4),
        steps=1,
    )


@pytest.fixture(scope="module")
def chain() -> list[tuple[str, Simulated, History]]:
    """From the published design to ours, a few episodes a step."""
    small = job()
    small = replace(small, config=override(small.config, overlapped(small.config, range(8))))
    ours = design_of(small.config, small.node, 8)
    return [(cause, *simulate(small, design)) for cause, design in causes(small.config, small.system, small.node, ours)]


def test_a_token_costs_what_reading_the_weights_does() -> None:
    cost = GpuCost(Node(), SHAPES["4B"])
    weights = 2 * (36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728) + 151_936 * 2560)
    alone = weights / (3.35e12 * 0.65)
    assert cost.decode(1, 0) == pytest.approx(1.5e-3 + 1.2 * alone)
    assert kv_bytes(SHAPES["4B"]) == 2 * 36 * 8 * 128 * 2
    longer = (weights + 147_456 * 100_000) / (3.35e12 * 0.65)
    assert cost.decode(8, 100_000) == pytest.approx(1.5e-3 + 1.2 * longer)
    assert GpuCost(Node(), SHAPES["4B"], adapters=False).decode(1, 0) == pytest.approx(1.5e-3 + alone)


def test_a_prompt_costs_its_operations() -> None:
    assert prompt_work(10, 4) == Work(6, 5 + 6 + 7 + 8 + 9 + 10, 1)
    linear, head = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728), 151_936 * 2560
    flops = 2 * linear * 1000 + 4 * 36 * 32 * 128 * (1000 * 1001 / 2) + 2 * head
    seconds = GpuCost(Node(), SHAPES["4B"]).prefill([(1000, 0)])
    assert seconds == pytest.approx(0.01 + 1.1 * flops / (989.4e12 * 0.5))


def test_training_costs_forward_backward_reference_and_what_is_computed_again() -> None:
    config = LearnConfig(roles=("a", "b"), rank=32, checkpoint_activations=True, beta=0.01)
    linear = 2 * 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
    adapter = 2 * 32 * 36 * 57_344  # rank · (in + out) of all linears
    lora, full = (Learning.of(config, SHAPES["4B"], 8, full=full) for full in (False, True))
    one = Work(1, 0, 0)
    assert lora.flops(one, recomputed=False) == pytest.approx(3 * linear + 3 * adapter)
    assert lora.flops(one, recomputed=True) == pytest.approx(4 * linear + 4 * adapter)
    assert full.flops(one, recomputed=False) == pytest.approx((1 + 2 + 2) * linear)
    assert lora.publish_seconds(Node()) == pytest.approx(0.5 + 4 * 2 * 32 * 36 * 57_344 / 1e9)


def sample(name: str, *tokens: int) -> Sample:
    return Sample(role="a", tokens=tokens, spans=((len(tokens) - 2, len(tokens)),), logprobs=(0.0, 0.0), source=name)


def test_micro_batches_are_shared_packed_or_padded() -> None:
    context = tuple(range(100, 140))
    samples = [sample("x", *context, 1, 2, 3), sample("y", *context, 4, 5, 6), sample("z", 9, 8, 7)]
    shared, packed, padded = (plan_update(samples, ["a"], 1, 150, how) for how in ("shared", "packed", "padded"))
    assert shared.tokens == 40 + 2 + 2 + 2, "an action's last token is not computed"
    assert packed.tokens == 42 + 42 + 2
    assert padded.tokens == 3 * 43 and padded.useful.tokens == packed.tokens
    assert shared.works[0][0].pairs == 40 * 41 / 2 + 2 * (41 + 42) + (1 + 2), "all up to itself on its path"


class Plain:
    """A decoding step of n rows takes 10 + n ms, a prompt's token 10 ms."""

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        return 0.01 * sum(tokens - cached for tokens, cached in prompts)

    def decode(self, rows: int, context: float) -> float:
        return 0.01 + 0.001 * rows


def serve(
    requests: Sequence[tuple[tuple[int, ...], int]],
    capacity: int = 10**6,
    learning: float = 0.0,
    cost: Cost | None = None,
) -> Any:
    """(seconds at which each ends, the engine, its GPU); all are asked for at once."""

    async def story() -> Any:
        gpu, clock = Gpu(), asyncio.get_running_loop().time
        engine = Engine(cost or Plain(), gpu, capacity)
        running = asyncio.create_task(engine.run())

        async def one(prompt: tuple[int, ...], tokens: int) -> float:
            await engine.generate("a@0", prompt, tuple(range(tokens)), blocks_of("a@0", prompt))
            return clock()

        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(one(*request)) for request in requests]
            if learning:
                group.create_task(learn_on([gpu], learning))
        gpu.set(serving=False)
        running.cancel()
        return [end.result() for end in ends], engine, gpu

    return virtual.run(story())


def test_rows_advance_together() -> None:
    ends, engine, gpu = serve([((1,), 100), ((2,), 200), ((3,), 300)])
    began = 3 * 0.01
    assert ends == pytest.approx([began + 1.3, began + 1.3 + 1.2, began + 1.3 + 1.2 + 1.1])
    assert engine.count.decoded == pytest.approx(600) and engine.count.steps == pytest.approx(300)
    assert busy(gpu, 0.0, max(ends)) == pytest.approx((1.0, 0.0))


def test_a_shared_gpu_gives_half_of_its_time_to_each() -> None:
    ends, _, gpu = serve([((1,), 100)], learning=100.0)
    assert ends == pytest.approx([2 * (0.01 + 1.1)])
    whole = 1.11 + 100.0
    assert busy(gpu, 0.0, whole) == pytest.approx((1.11 / whole, 100.0 / whole)), "no time is lost or made"


def test_keys_and_values_bound_what_is_decoded_together() -> None:
    ends, engine, _ = serve([((1,), 99), ((2,), 99), ((3,), 99)], capacity=200)
    assert ends[0] == pytest.approx(ends[1]) and ends[2] == pytest.approx(ends[1] + 0.01 + 99 * 0.011)
    assert engine.count.full_seconds == pytest.approx(99 * 0.012)


def test_known_beginnings_are_not_computed_again() -> None:
    prompt = tuple(range(64))
    _, engine, _ = serve([(prompt, 2), ((*prompt[:48], 7, 7), 2)])
    assert engine.count.prefilled == 64 + 2 and engine.count.reused == 48


def test_causes_multiply_to_the_gain(chain: list[tuple[str, Simulated, History]]) -> None:
    results = [(cause, result) for cause, result, _ in chain]
    assert [cause for cause, _ in results] == ["published", "overlap", "one base", "packing", "sharing"]
    ratios = [row.ratio for row in chain_rows(results)]
    assert math.prod(ratios) == pytest.approx(gain(results[-1][1], results[0][1]).ratio)


def test_what_is_simulated_keeps_to_its_design(chain: list[tuple[str, Simulated, History]]) -> None:
    for cause, result, history in chain:
        assert max(result.staleness) <= (0 if cause == "published" else 1)
        assert all(0 <= s + n <= 1 + 1e-9 for s, n in zip(result.serving, result.learning, strict=True))
        assert len(result.serving) == result.gpus == (8 if cause in ("one base", "packing", "sharing") else 6)
        assert 0 < result.mfu < result.learn_mfu < 1 and result.cut == 0
        lines = list(gantt(result, history))
        assert len(lines) == result.gpus + 2 and "simulated" in lines[0]
    computed = {cause: result.computed for cause, result, _ in chain}
    assert computed["sharing"] < computed["packing"] <= computed["one base"]
    names = {event["args"].get("name") for event in json.loads(trace(chain[-1][2]))["traceEvents"]}
    assert {"GPU 0", "GPU 7", "learn"} <= names


def test_the_same_comes_out_again() -> None:
    design = published(job().config, job().system, Node())
    assert simulate(job(), design)[0] == simulate(job(), design)[0]


@pytest.mark.parametrize(
    ("settings", "node", "why"),
    [
        (("rollout.max_staleness=1",), [], "sampler.kind='local' generates with the learner's own layers"),
        (("learn.tokens_per_micro_batch=400000",), [], "the largest part is learner"),
        (("learn.tokens_per_micro_batch=8192",), [], "cannot hold the longest action"),
        ((), ["memory=40e9"], "GB \\(predicted\\)|a server has room for"),
        (("sampler.kind=sglang", "sampler.sglang.gpus=[8]"), [], "the node has GPUs 0 to 7"),
        (("sampler.kind=sglang", "sampler.sglang.tp=2"), [], "not simulated"),
    ],
)
def test_what_cannot_run_is_refused(settings: tuple[str, ...], node: list[str], why: str) -> None:
    tried = attempt(job(node=node_from(node)), Candidate(settings, 8))
    assert tried.result is None and re.search(why, tried.why)


def test_a_node_is_described_in_its_own_words() -> None:
    assert node_from(["gpus=4", "hbm=4.8e12"]) == Node(gpus=4, hbm=4.8e12)
    for wrong in ("gpu=4", "hbm=fast", "hbm=0"):
        with pytest.raises(ConfigError, match="--node"):
            node_from([wrong])


def test_costs_of_decoding_are_found_again() -> None:
    lengths = [40, 60, 80, 120, 160, 240, 300, 380]
    cost = Fitted(step=0.01, row=0.001, tools=(0.0,), coach=(0.0,), learn=0.0, publish=0.0, other=0.0)
    ends, _, _ = serve([((number,), length) for number, length in enumerate(lengths)], cost=cost)
    watched = [Watched(0.0, end, 1, length) for end, length in zip(ends, lengths, strict=True)]
    step, row = fit_decoding(watched)
    assert step == pytest.approx(0.01, rel=0.1) and row == pytest.approx(0.001, rel=0.2)
    with pytest.raises(JournalError, match="nothing was generated"):
        fit_decoding([])


def past(slower: float) -> Past:
    """Two steps of two episodes, each role's generation one after the other."""
    config = load_config(CONFIGS / "quickstart.toml", ["rollout.episodes=2"])
    episodes, spans, steps, now = [], {}, [], 0.0
    for step in (1, 2):
        for number in range(2):
            id, actions, began = f"{step}-{number}", [], now
            for role in team_of(config).roles:
                prompt = tuple(range(40 + number))
                actions.append(
                    Action(
                        role=role.name,
                        turn=0,
                        adapter=f"{role.name}@{step - 1}",
                        prompt_ids=prompt,
                        output_ids=tuple(range(50)),
                        logprobs=(-0.5,) * 50,
                        finish_reason="stop",
                        text="",
                    )
                )
                spans["generate", id, role.name, 0] = Span("generate", id, role.name, 0, began, began + slower)
                began += slower
            episodes.append(Episode(id=id, task="t", kind="k", seed=0, step=step, actions=tuple(actions)))
        seconds = Seconds(generate=3 * slower, learn=2 * slower, other=0.1)
        steps.append(StepMetrics(step=step, episodes=2, tokens_computed=300, seconds=seconds))
        now += 10 * slower
    return Past(config, episodes, spans, steps)


def test_a_run_predicts_another_like_it_and_no_other() -> None:
    fitted = calibrated(past(1.0))
    predicted = predict(fitted, past(1.0))
    assert len(predicted) == 2 and all(step.learn == pytest.approx(predicted[0].learn) for step in predicted)
    like, other = prediction_rows(fitted, past(1.0)), prediction_rows(fitted, past(3.0))
    judged = {row.what.partition(":")[0]: row for row in like if row.goal}
    assert set(judged) == {"seconds of a step", "busy share, generate", "busy share, learn"}
    assert other[0].met is False and other[0].ours == pytest.approx(2 / 3, abs=0.15)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    monkeypatch.setattr(sys, "argv", ["profile", "--quick", "--json", str(path)])
    profile.main()
    found = json.loads(path.read_bytes())
    assert found["bench"] == "profile" and {"env", "rows", "simulated"} <= set(found)
    units = {row["what"]: row["unit"] for row in found["rows"]}
    assert all("simulated" in unit for what, unit in units.items() if not what.endswith("measured"))
    assert {"MFU, measured", "seconds of a step, measured", "dsbench-qwen3-4b, cause: overlap"} <= set(units)
    assert set(found["simulated"]["dsbench-qwen3-4b"]) == {"designs", "tried"}
    shown = capsys.readouterr().out
    assert "GPU 7 " in shown and "staleness (versions behind: actions)" in shown and "predicted GB" in shown
