"""From a config to a service that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mappa.config import LearnConfig, ServeConfig, available_cores
from mappa.errors import ConfigError
from mappa.model.base import load_base
from mappa.model.lora import add_roles
from mappa.serve.models import Models
from mappa.serve.service import Service
from mappa.serve.state import State
from mappa.serve.worker import Worker


@contextmanager
def start(config: ServeConfig) -> Iterator[Service]:
    """A service on this event loop, and its worker. Raises MappaError."""
    import torch

    if torch.cuda.is_available():
        raise ConfigError("mappa serve computes on the CPU so far; hide the GPU from it (CUDA_VISIBLE_DEVICES=)")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, which transformers imports, wonders aloud
    state = State(Path(config.state))
    base = load_base(config.model, config.dtype)
    learn = LearnConfig(
        model=config.model,
        rank=config.rank,
        alpha=config.alpha,
        tokens_per_micro_batch=config.tokens_per_micro_batch,
        checkpoint_activations=config.checkpoint_activations,
    )
    router, layers = add_roles(base.model, learn.targets, learn.first_layer, 1.0)
    worker = Worker(
        base,
        router,
        learn,
        max_rows=config.max_rows,
        gather=config.gather,
        threads=config.threads or available_cores(),
        exact=config.exact,
    )
    try:
        yield Service(config, state, base, router, worker, Models(state, base, layers, worker.engine, config, learn))
    finally:
        worker.close()
        state.close()
