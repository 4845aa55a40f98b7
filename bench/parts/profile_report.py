"""What a simulation came to, for people and programs: rows, memory, a Gantt in text, a trace for Perfetto."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from bench.harness import Row, compare
from bench.parts.profile_design import Design, memory
from bench.parts.profile_result import History, Simulated
from bench.parts.profile_search import Tried
from bench.parts.profile_simulation import Job
from mappa.journal import Span
from mappa.learn.memory import GB
from mappa.observe.timeline import chrome_trace

COLUMNS = 72
"""Of a Gantt."""


def facts(job: Job, result: Simulated, tasks: int) -> list[Row]:
    """One design on its own. An epoch is one pass over `tasks` tasks."""
    rollout, node = job.config.rollout, job.node
    hours = tasks * rollout.samples_per_task / rollout.episodes * result.step_seconds / 3600
    busy = [s + n for s, n in zip(result.serving, result.learning, strict=True)]

    def row(what: str, value: float, unit: str, note: str = "") -> Row:
        return compare(f"{result.design}: {what}", value, None, "", f"{unit}, simulated".lstrip(", "), note=note)

    return [
        row("an epoch", hours, "h", f"{tasks} tasks x {rollout.samples_per_task}, evaluation left out"),
        row("an epoch's price", hours * node.gpus * node.dollars, "$", f"{node.gpus} GPUs at {node.dollars:g} $/h"),
        row("episodes per GPU and hour", result.episodes_per_gpu_hour, "1/h"),
        row("a step", result.step_seconds, "s", f"of it learning {result.learn_seconds:.3g}"),
        row(
            "prompt tokens computed", result.prefill_per_second, "1/s", f"{100 * result.reused:.0f} % more were cached"
        ),
        row("tokens decoded", result.decode_per_second, "1/s", f"{result.rows:.1f} rows together per server"),
        row("tokens learned from, while learning", result.learn_per_second, "1/s"),
        row("MFU, all GPUs and all of the time", result.mfu, ""),
        row("MFU of the learner", result.learn_mfu, ""),
        row("busy, mean over GPUs", sum(busy) / len(busy), "", f"least {min(busy):.2f}, most {max(busy):.2f}"),
    ]


def gain(ours: Simulated, peer: Simulated, goal: str = "") -> Row:
    """Against the published design, per GPU that each uses."""
    return compare(
        f"{ours.design}: episodes per GPU and hour",
        ours.episodes_per_gpu_hour,
        peer.episodes_per_gpu_hour,
        f"published design, {peer.gpus} GPUs",
        "1/h, simulated",
        goal,
        more_is_better=True,
    )


def chain_rows(chain: Sequence[tuple[str, Simulated]]) -> list[Row]:
    """What each cause multiplies the throughput by; the factors multiply to the whole gain."""
    return [
        compare(
            f"cause: {cause}",
            now.episodes_per_gpu_hour,
            before.episodes_per_gpu_hour,
            f"without it ({before.design})",
            "1/h, simulated",
            more_is_better=True,
        )
        for (_, before), (cause, now) in itertools.pairwise(chain)
    ]


def ranking(tried: Sequence[Tried], count: int = 3) -> Iterator[str]:
    """The best and why not better, then whatever was refused."""
    for place, one in enumerate([one for one in tried if one.result is not None][:count], start=1):
        assert one.result is not None
        rate = one.result.episodes_per_gpu_hour
        yield f"{place}. {one.result.design}: {rate:.1f} episodes per GPU and hour, simulated"
        yield f"   bounded by {one.why}"
        yield f"   torchrun --standalone {one.candidate.command}"
    for one in tried:
        if one.result is None:
            yield f"refused: {one.candidate.command}: {one.why}"


def memory_text(job: Job, design: Design) -> Iterator[str]:
    """GPUs that hold the same are one line."""
    alike: dict[str, list[int]] = {}
    for gpu in range(design.gpus):
        parts = memory(job.config, job.shape, job.node, design, gpu)
        line = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items())
        alike.setdefault(line, []).append(gpu)
    for line, gpus in alike.items():
        yield f"GPU {', '.join(map(str, gpus))}, predicted GB: {line or 'nothing'}"


def gantt(result: Simulated, history: History) -> Iterator[str]:
    """A line per GPU over the measured steps: serving, learning, both in turns, idle."""
    span = history.ended - history.began
    yield f"{result.design}, simulated: {span:.0f} s, s serves, L learns, B both in turns, . idle"
    edges = np.linspace(history.began, history.ended, COLUMNS + 1)
    for number, gpu in enumerate(history.gpus):
        load = np.zeros((2, COLUMNS))
        for use in gpu.uses:
            overlap = np.clip(np.minimum(use.ended, edges[1:]) - np.maximum(use.began, edges[:-1]), 0, None)
            load += np.outer([use.serving, use.learning], overlap / (span / COLUMNS))
        line = "".join(".LsB"[2 * int(s >= 0.5) + int(n >= 0.5)] for s, n in load.T)
        shares = result.serving[number], result.learning[number]
        idle = max(0.0, 1 - sum(shares))
        yield f"GPU {number} {line} serving {shares[0]:4.0%} learning {shares[1]:4.0%} idle {idle:4.0%}"
    behind = ", ".join(f"{versions}: {actions}" for versions, actions in result.staleness.items())
    yield f"staleness (versions behind: actions): {behind}"


def trace(history: History) -> bytes:
    """For ui.perfetto.dev: a process per GPU beside those of the episodes. Times are simulated."""
    spans = [
        Span(kind, f"GPU {number}", "", 0, use.began, use.ended)
        for number, gpu in enumerate(history.gpus)
        for use in gpu.uses
        for kind, at_work in (("serve", use.serving), ("learn", use.learning))
        if at_work
    ]
    return chrome_trace([*history.spans, *spans])


def listed(tried: Sequence[Tried]) -> list[dict[str, object]]:
    """What was tried, as JSON has it."""
    return [
        {"settings": one.candidate.command, "bound": one.why, "simulated": one.result and record(one.result)}
        for one in tried
    ]


def record(result: Simulated) -> dict[str, object]:
    """As JSON has it."""
    made: dict[str, object] = msgspec.to_builtins(result, str_keys=True)
    return made
