"""Run by torchrun from test_learner: six steps, each with its samples spread over two ranks in another way."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mappa.learn import Learner
from tests.learn.helpers import make_samples
from tests.learn.test_learner import settings

folder, out, stage = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = settings(folder, zero_stage=stage)
learner = Learner(config, total_steps=6)
rank = dist.get_rank()
for step in range(6):
    samples = make_samples(step)
    if step % 3 == 0:
        mine = samples[rank::2]  # the same roles on both
    elif step % 3 == 1:
        mine = [s for s in samples if (s.role == "engineer") == (rank == 0)]  # disjoint roles
    else:
        mine = list(reversed(samples)) if rank == 1 else []  # all on one rank, in another order
    learner.step(mine)
weights = {
    role: {name: tuple(p.detach().clone() for p in pair) for name, pair in adapter.items()}
    for role, adapter in learner.adapters.items()
}
torch.save(weights, out / f"rank{rank}.pt")
dist.barrier()
dist.destroy_process_group()
