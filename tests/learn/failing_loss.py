"""Run by torchrun: a foreign loss that fails on one rank alone, in the middle of its passes."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mappa.errors import LearnError
from mappa.learn import Learner, LossBatch, ranks
from tests.learn.helpers import make_samples
from tests.learn.test_learner import settings


def main() -> None:
    learner = Learner(settings(Path(sys.argv[1]), tokens_per_micro_batch=100))
    rank, calls = dist.get_rank(), 0

    def loss(logprob: torch.Tensor, batch: LossBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return logprob[1:] if rank == 1 and calls == 2 else -batch.advantage

    for attempt in (loss, None):
        try:
            learner.step(make_samples(0)[rank::2], coefficients=attempt)
        except LearnError as error:
            print(f"rank {rank} after {calls} passes: {error}", flush=True)
    assert not any(bool(b.any()) for adapter in learner.adapters.values() for _, b in adapter.values())
    dist.barrier()
    ranks.leave()


if __name__ == "__main__":
    main()
