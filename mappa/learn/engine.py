"""DeepSpeed under the learner: one engine, one parameter group per role, every setting that matters explicit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from mappa.config import LearnConfig
from mappa.learn import ranks
from mappa.learn.memory import REDUCE_BUCKET
from mappa.learn.optimizer import RoleAdamW
from mappa.learn.weights import RoleWeights


def start_engine(module: nn.Module, weights: Mapping[str, RoleWeights], config: LearnConfig) -> tuple[Any, RoleAdamW]:
    """Initialise DeepSpeed over `module`, in the process group that `join` found or made. Returns the engine and the
    optimizer, whose groups are in the order of `weights`."""
    deepspeed = _deepspeed()
    groups = {role: list(mine.parameters.values()) for role, mine in weights.items()}
    everything = [parameter for group in groups.values() for parameter in group]
    optimizer = RoleAdamW(
        [{"name": role, "params": group} for role, group in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=everything,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # boundaries are set by hand: their number changes per step
            "gradient_clipping": 0.0,  # the default, 1.0, clips all roles together; ours are clipped each on its own
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": _zero(config, module, sum(parameter.numel() for parameter in everything)),
            "steps_per_print": 10**9,
        },
    )
    _create_moments(engine, optimizer)
    if config.zero_stage == 3:
        _keep_whole(engine, everything)
    return engine, optimizer


def _keep_whole(engine: Any, parameters: Sequence[Any]) -> None:
    """Have ZeRO-3 leave the adapters whole on every rank, so that one can publish them without the others. What it
    divides is their optimiser state, and the base."""
    persistent = engine.optimizer.persistent_parameters  # what is gathered after every step
    for parameter in parameters:
        if not parameter.ds_persist:
            parameter.ds_persist = True
            persistent.append(parameter)
    parameters[0].all_gather(list(parameters))


def _zero(config: LearnConfig, module: nn.Module, elements: int) -> dict[str, Any]:
    """`elements`: of all adapters together."""
    settings: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_bucket_size": min(REDUCE_BUCKET, elements),
    }
    if config.offload and config.zero_stage > 0:
        settings["offload_optimizer"] = {"device": "cpu"}
    if config.zero_stage == 3:
        # Of a divided base, vectors stay whole: they are needed all the time and weigh nothing.
        vectors = [p.numel() for p in module.parameters() if p.dim() == 1 and not p.requires_grad]
        settings["stage3_param_persistence_threshold"] = max(vectors, default=0)
        # Micro-batches differ in which nodes they have; there is no fixed order of use to prefetch by.
        settings["stage3_prefetch_bucket_size"] = 0
        settings["stage3_max_reuse_distance"] = 0
    return settings


def gradients(engine: Any, optimizer: RoleAdamW) -> list[list[torch.Tensor]]:
    """This rank's part of every group's gradient, after the backward pass at a boundary and before the step."""
    if not engine.zero_optimization():
        return [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    zero = engine.optimizer
    flat = getattr(zero, "single_partition_of_fp32_groups", None) or getattr(zero, "fp32_partitioned_groups_flat", [])
    found = []
    for index in range(len(optimizer.param_groups)):
        parts = zero.averaged_gradients.get(index)
        if parts is None:  # offloaded: they are where the update will be made
            parts = [] if flat[index].grad is None else [flat[index].grad]
        found.append([part for part in parts if part is not None])
    return found


def stepped(engine: Any, optimizer: RoleAdamW) -> list[list[torch.Tensor]]:
    """The tensors that optimizer state belongs to, by group: parameters, or this rank's pieces of them under ZeRO."""
    if engine.zero_optimization_stage() == 3:  # takes them out of the groups between steps
        return [[piece] for piece in engine.optimizer.fp32_partitioned_groups_flat]
    return [group["params"] for group in optimizer.param_groups]


def _create_moments(engine: Any, optimizer: RoleAdamW) -> None:
    """Zero moments for every group now, linked to the parameters whose shards they are.

    ZeRO links them at the first step, and never again: the state of a role absent from that step would be lost to
    checkpoints, and a restored learner could not take its moments in.
    """
    for tensors in stepped(engine, optimizer):
        for tensor in tensors:
            optimizer.state[tensor] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
    if engine.zero_optimization() and engine.zero_optimization_stage() < 3:
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def join() -> None:
    """Use the process group there is; otherwise torchrun's, otherwise a group of one that needs no port.

    DeepSpeed's own limit is ten minutes, also for the ranks to find each other, while rank 0 may be downloading tasks.
    """
    deepspeed = _deepspeed()
    if torch.distributed.is_initialized():
        deepspeed.init_distributed(verbose=False)
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(backend, verbose=False, timeout=ranks.PATIENCE)


def _deepspeed() -> Any:
    """DeepSpeed, imported late, told to keep its notices to itself and to compile nothing.

    Its CPU backend builds a shared-memory all-reduce for tensor-parallel inference whenever it starts: a minute, a
    compiler, a line on stdout, and a lock file that a killed process leaves behind for the next to wait on. Nothing
    here calls it; without it DeepSpeed takes gloo's.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # By its full name: the attribute deepspeed.comm.torch is torch itself.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed
