"""DeepSpeed under the learner: one engine, one parameter group per role, every setting that matters explicit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from mappa.config import LearnConfig
from mappa.learn.optimizer import RoleAdamW

Weights = Mapping[str, tuple[nn.Parameter, nn.Parameter]]


def start_engine(module: nn.Module, adapters: Mapping[str, Weights], config: LearnConfig) -> tuple[Any, RoleAdamW]:
    """Initialise DeepSpeed over `module`. Joins the process group there is, makes one under torchrun, else a group of
    one. Returns the engine and the optimizer, whose groups are in the order of `adapters`."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = _deepspeed()
    _join(deepspeed)
    optimizer = RoleAdamW(
        [{"name": role, "params": _flat(weights)} for role, weights in adapters.items()],
        clip_norm=config.clip_norm,
        sharded=config.zero_stage > 0,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        foreach=True,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        model_parameters=[p for weights in adapters.values() for p in _flat(weights)],
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # boundaries are set by hand: their number changes per step
            "gradient_clipping": 0.0,  # the default, 1.0, clips all roles together; ours are clipped each on its own
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": config.zero_stage,
                "overlap_comm": False,
                "contiguous_gradients": True,
                "reduce_bucket_size": 50_000_000,
            },
            "steps_per_print": 10**9,
        },
    )
    _create_moments(engine, optimizer)
    return engine, optimizer


def _flat(weights: Weights) -> list[nn.Parameter]:
    return [tensor for pair in weights.values() for tensor in pair]


def _create_moments(engine: Any, optimizer: RoleAdamW) -> None:
    """Zero moments for every group now, linked to the parameters whose shards they are.

    ZeRO links them at the first step, and never again: the state of a role absent from that step would be lost to
    checkpoints, and a restored learner could not take its moments in.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    if engine.zero_optimization():
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _join(deepspeed: Any) -> None:
    """Use the process group there is; otherwise torchrun's, otherwise a group of one on a port nobody else has."""
    if torch.distributed.is_initialized():
        deepspeed.init_distributed(verbose=False)
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed.init_distributed(backend, verbose=False)


def _deepspeed() -> Any:
    """DeepSpeed, imported late, told to keep its notices to itself and to compile nothing.

    Its CPU backend builds a shared-memory all-reduce for tensor-parallel inference whenever it starts: a minute, a
    compiler, a line on stdout, and a lock file that a killed process leaves behind for the next to wait on. Nothing
    here calls it; without it DeepSpeed takes gloo's.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # By its full name: the attribute deepspeed.comm.torch is torch itself.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed
