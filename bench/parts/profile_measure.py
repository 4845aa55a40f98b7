"""A few real steps on the machine at hand, and what they come to: tokens/s by phase, MFU, busy shares."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.harness import Row, compare
from bench.parts.profile_learner import Learning, plan_update
from bench.parts.profile_node import Work, forward_flops, prompt_work
from mappa.config import Config, load_config
from mappa.dryrun import model_shape
from mappa.errors import MappaError
from mappa.journal import read_episodes
from mappa.observe.metrics import Seconds, StepMetrics, read_metrics
from mappa.observe.speed import speed_of
from mappa.rollout.samples import samples_of
from mappa.run import learn_settings
from mappa.sampler.sglang.routing import blocks_of
from mappa.systems import adapters_of, team_of
from mappa.types import Episode


def measured_rows(path: Path, overrides: Sequence[str], *, steps: int, ranks: int, peak: float) -> list[Row]:
    """Train `steps` steps in a temporary run folder, with one greedy evaluation on each side, which is not counted.

    `peak` is the FLOP/s of a rank; 0: that of a large matrix product, measured here. Raises MappaError.
    """
    config = load_config(path, overrides)
    with tempfile.TemporaryDirectory() as runs:
        fixed = [f"runs={runs}", "name=profile", f"steps={steps}", "evaluate.samples=0", "evaluate.greedy=true"]
        _train([str(path), *overrides, *fixed, "evaluate.every=0", "keep=1"], ranks)
        folder = Path(runs) / "profile"
        metrics = read_metrics(folder / "metrics.jsonl")
        episodes = list(read_episodes(folder / "journal.sqlite"))
    flops = phase_flops(config, episodes, ranks)
    return rows(metrics, flops, ranks * (peak or peak_flops(config.dtype)))


def _train(arguments: Sequence[str], ranks: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "mappa.train", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise MappaError(f"the run failed with {done.returncode}:\n{done.stdout[-2000:]}")


def rows(metrics: Sequence[StepMetrics], flops: dict[str, float], peak: float) -> list[Row]:
    """Over all steps together."""
    speed = speed_of(metrics)
    seconds = {name: sum(getattr(m.seconds, name) for m in metrics) for name in Seconds.__struct_fields__}
    whole = sum(seconds.values())
    note = f"of {peak / 1e9:.4g} GFLOP/s"

    def row(what: str, value: float, unit: str, note: str = "") -> Row:
        return compare(f"{what}, measured", value, None, "", unit, note=note)

    return [
        row("seconds of a step", whole / len(metrics), "s"),
        row("generated", speed.generated_per_second, "tokens/s", "prompts and decoding, while generating"),
        row("learned", speed.computed_per_second, "tokens/s", "forward and backward, shared prefixes once"),
        row("MFU of generating", flops["generate"] / seconds["generate"] / peak, "", note),
        row("MFU of learning", flops["learn"] / seconds["learn"] / peak, "", note),
        row("MFU", sum(flops.values()) / whole / peak, "", note),
        *(row(f"busy share, {phase}", share, "") for phase, share in speed.shares.items()),
    ]


def phase_flops(config: Config, episodes: Sequence[Episode], ranks: int) -> dict[str, float]:
    """Useful operations of all steps, by phase: prompts less what was known of them, and what the packer left."""
    shape, _ = model_shape(config.model)
    team = team_of(config)
    known: set[int] = set()
    generated = Work()
    for action in itertools.chain.from_iterable(episode.actions for episode in episodes):
        blocks = blocks_of(action.adapter, action.prompt_ids)
        cached = sum(1 for _ in itertools.takewhile(known.__contains__, blocks))
        known.update(blocks)
        prompt, output = len(action.prompt_ids), len(action.output_ids)
        work = prompt_work(prompt + output, min(16 * cached, prompt - 1))
        generated += Work(work.tokens, work.pairs, output)
    learning, learned = Learning.of(learn_settings(config), shape, ranks), 0.0
    for step in sorted({episode.step for episode in episodes}):
        samples = samples_of([e for e in episodes if e.step == step], group_by=config.learn.group_by)
        budget = config.learn.tokens_per_micro_batch
        update = plan_update(samples, adapters_of(team), ranks, budget, "shared")
        learned += learning.flops(update.useful, recomputed=False)
    return {"generate": forward_flops(shape, generated), "learn": learned}


def peak_flops(dtype: str, size: int = 1536, seconds: float = 0.5) -> float:
    """Of a square matrix product on this machine, best of several: what is called its peak where no data sheet is."""
    import torch

    from mappa.model.base import choose_dtype

    one = torch.randn(size, size).to(choose_dtype(dtype))
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
