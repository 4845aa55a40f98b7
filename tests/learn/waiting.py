"""Run by torchrun: rank 0 keeps the others waiting, before they have found each other and after."""

import os
import time

import torch
import torch.distributed as dist

from mappa.learn import ranks
from mappa.learn.engine import join

PAUSE = 2.0
LEAD = os.environ["RANK"] == "0"


def pause() -> None:
    if LEAD:
        time.sleep(PAUSE)


def limit(group: dist.ProcessGroup) -> object:
    """How long a rank waits in this group."""
    return group._get_backend(torch.device("cpu")).options._timeout


def main() -> None:
    pause()  # preparing tasks
    join()
    pause()  # looking for a checkpoint
    assert ranks.broadcast("found" if LEAD else None) == "found"
    pause()  # rolling out
    mine: str = ranks.scatter(["a", "b"] if LEAD else None)
    assert mine == "ab"[ranks.rank()]
    pause()  # the last evaluation
    ranks.barrier()
    limits = {limit(dist.group.WORLD), limit(ranks._for_waiting())}
    print(f"rank {ranks.rank()} was there, and waits for {limits}", flush=True)
    ranks.leave()


if __name__ == "__main__":
    main()
