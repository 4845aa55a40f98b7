"""Talking between ranks. Without a process group everything is about this process alone.

`scatter`, `broadcast` and `barrier` wait for rank 0, which meanwhile plays a step's episodes or measures the team: for
hours, where those are long. They go through a gloo group of their own, whatever the backend: under NCCL the GPUs, which
serve the rollouts, would otherwise spin in the waiting kernel.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from mappa.errors import MappaError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a rank waits for another: no rollout is cut short by it. That a rank has died is noticed without it, and at
once: torchrun ends the others. (In milliseconds it must fit 32 bits, which parts of torch count in: 24 days.)"""


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def device() -> torch.device:
    """Where this rank computes, and where tensors must lie to be exchanged."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def group() -> dist.ProcessGroup | None:
    """The default group where there is more than one rank."""
    return dist.group.WORLD if world_size() > 1 else None


def total(counts: Sequence[int]) -> list[int]:
    """Element-wise sums over all ranks."""
    return [int(value) for value in add(torch.tensor(list(counts), dtype=torch.int64))]


def add(tensor: torch.Tensor) -> torch.Tensor:
    """Its sum over all ranks, on the CPU."""
    if world_size() == 1:
        return tensor.cpu()
    moved = tensor.to(exchange_device(), copy=True)
    dist.all_reduce(moved)
    return moved.cpu()


def maximum(count: int) -> int:
    if world_size() == 1:
        return count
    tensor = torch.tensor(count, device=exchange_device())
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def union(items: Sequence[T]) -> list[T]:
    """The distinct items of all ranks, sorted: the same list everywhere."""
    gathered: list[Any] = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, sorted(set(items)))
    else:
        gathered = [list(items)]
    return sorted({item for part in gathered for item in part})


def gather(items: Sequence[T]) -> list[T]:
    """The items of all ranks, by rank, on rank 0; elsewhere none."""
    if world_size() == 1:
        return list(items)
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(list(items), gathered, dst=0)
    return [item for part in gathered or () for item in part]


def scatter(shares: Sequence[T] | None) -> T:
    """Rank 0 gives one item per rank; every rank returns its own."""
    if world_size() == 1:
        assert shares is not None
        return shares[0]
    received: list[Any] = [None]
    dist.scatter_object_list(received, list(shares) if shares is not None else None, src=0, group=_for_waiting())
    mine: T = received[0]
    return mine


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=_for_waiting())
    received: T = box[0]
    return received


def raise_together(fault: MappaError | None) -> None:
    """Raise on every rank if any rank has a fault, so that none waits for another in a collective."""
    if maximum(int(fault is not None)) == 0:
        return
    if world_size() == 1:
        assert fault is not None
        raise fault
    faults: list[Any] = [None] * world_size()
    dist.all_gather_object(faults, None if fault is None else (type(fault), str(fault)))
    for index, found in enumerate(faults):
        if found is not None:
            kind, message = found
            raise fault if index == rank() and fault is not None else kind(f"rank {index}: {message}")


def barrier() -> None:
    if world_size() > 1:
        dist.barrier(group=_for_waiting())


def leave(status: int = 0) -> NoReturn:
    """End this process, one of several ranks, without the interpreter's shutdown.

    gloo's threads outlive `destroy_process_group`, since DeepSpeed holds on to the groups. One that lets go of a tensor
    late, after the shutdown began, aborts the process, and torchrun takes a run that is complete for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _for_waiting() -> dist.ProcessGroup:
    """All ranks, on gloo, with PATIENCE; made at the first call (collective)."""
    return _waiting_beside(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _waiting_beside(world: dist.ProcessGroup | None) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group


def exchange_device() -> torch.device:
    """NCCL exchanges what lies on the GPU; gloo, which an embedding program may have chosen, what lies on the CPU."""
    return torch.device("cpu") if dist.is_initialized() and dist.get_backend() != "nccl" else device()
