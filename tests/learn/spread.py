"""Run by torchrun: eight steps of every variant, each step's samples spread over the ranks in another way.

    python -m tests.learn.spread MODEL OUT VARIANT[=CHECKPOINT]...

Leaves OUT/VARIANT-WORLD-RANK.pt, and a checkpoint of step 4 as OUT/VARIANT-WORLD. With CHECKPOINT it goes on there.
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from mappa.learn import Learner, Sample, ranks
from tests.learn.helpers import ROLES, make_samples
from tests.learn.test_learner import settings

STEPS = 8
VARIANTS: dict[str, dict[str, object]] = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "zero-3-base": {"zero_stage": 3, "shard_base": True},
    "zero-2-offload": {"zero_stage": 2, "offload": True},
    "zero-2-recompute": {"zero_stage": 2, "checkpoint_activations": True, "first_layer": 1},
}


def all_samples(step: int) -> list[Sample]:
    """From step 4 on the third role is absent everywhere."""
    return make_samples(step, ROLES if step < 4 else ROLES[:2])


def share(step: int, rank: int, world: int) -> list[Sample]:
    """What one rank gets: the same roles everywhere, a role missing on a rank, another order, or nothing at all."""
    samples = all_samples(step)
    if world == 1:
        return samples
    kind = step % 4
    if kind == 0:
        return samples[rank::world]
    if kind == 1:
        return [s for i, s in enumerate(samples) if (0 if s.role == "engineer" else 1 + i % (world - 1)) == rank]
    if kind == 2:
        return list(reversed(samples)) if rank == 1 else []
    mine = [s for i, s in enumerate(samples) if (i * i) % world == rank]  # squares are not spread evenly
    return mine if rank % 2 else mine[::-1]


def main() -> None:
    model, out, *variants = sys.argv[1:]
    for named in variants:
        variant, _, start = named.partition("=")
        config = settings(Path(model), **VARIANTS[variant])
        new = Learner if not start else partial(Learner.load, start)
        learner = new(config, total_steps=STEPS)
        rank, world = dist.get_rank(), dist.get_world_size()
        for step in range(learner.steps, STEPS):
            if step == 4:
                learner.save(Path(out) / f"{variant}-{world}")
            report = learner.step(share(step, rank, world))
            everything = sorted(sample.source for sample in all_samples(step))
            assert sorted(one.source for one in report.samples) == (everything if rank == 0 else [])
        weights = {
            role: {name: tuple(p.detach().clone() for p in pair) for name, pair in adapter.items()}
            for role, adapter in learner.adapters.items()
        }
        base = sum(p.data.numel() for p in learner.base.model.parameters())
        torch.save({"adapters": weights, "base": base}, f"{out}/{variant}-{world}-{rank}.pt")
    dist.barrier()
    ranks.leave()


if __name__ == "__main__":
    main()
