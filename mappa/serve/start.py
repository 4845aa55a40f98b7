"""From a config to a server that listens."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web

from mappa.config import LearnConfig, ServeConfig, available_cores
from mappa.errors import ConfigError
from mappa.model.base import load_base
from mappa.model.lora import add_roles
from mappa.serve.app import application
from mappa.serve.models import Models
from mappa.serve.service import Service
from mappa.serve.state import State
from mappa.serve.worker import Worker


@asynccontextmanager
async def serving(config: ServeConfig, key: str) -> AsyncIterator[str]:
    """A server that answers while the block runs; gives its address. Raises MappaError for what cannot be served."""
    with _service(config) as service:
        runner = web.AppRunner(application(service, key), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await _listen(runner, config)
            host, port = runner.addresses[0][:2]
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, config: ServeConfig) -> None:
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None


@contextmanager
def _service(config: ServeConfig) -> Iterator[Service]:
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
        layers,
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
