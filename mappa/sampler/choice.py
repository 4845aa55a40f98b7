"""The sampler a config asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from mappa.config import Config
from mappa.model.base import Base
from mappa.model.lora import RoleLinear, Router
from mappa.sampler.local import LocalSampler
from mappa.sampler.sglang.canary import Canary
from mappa.sampler.sglang.process import Launch, check_python
from mappa.sampler.sglang.sampler import SGLangSampler

_CANARY_TOKENS = 256
_CONTEXT_MARGIN = 8


def check_sampler(config: Config) -> None:
    """Refuse what cannot start before anything large is loaded. Raises ConfigError."""
    if config.sampler.kind == "sglang":
        check_python(config.sampler.sglang)


@asynccontextmanager
async def open_sampler(
    config: Config,
    base: Base,
    router: Router,
    layers: Mapping[str, RoleLinear],
    prompts: Mapping[str, tuple[int, ...]],
    *,
    threads: int,
    notice: Callable[[str], None],
) -> AsyncIterator[LocalSampler | SGLangSampler]:
    """A sampler for the base whose `layers` the learner trains. `prompts` are, by role, what its prompts begin with.

    Raises ConfigError or ServerError.
    """
    settings = config.sampler
    if settings.kind == "local":
        local = LocalSampler(
            base,
            router,
            layers,
            max_rows=settings.max_rows,
            max_context=settings.max_context,
            threads=threads,
            exact=settings.exact,
        )
        try:
            yield local
        finally:
            local.close()
        return
    canary = Canary(
        base,
        router,
        {role: prompt[:_CANARY_TOKENS] for role, prompt in prompts.items()},
        settings.sglang.canary_tolerance,
    )
    launch = Launch(
        model=base.path,
        dtype=str(base.dtype).removeprefix("torch."),
        rank=config.learn.rank,
        targets=tuple(sorted({name.rpartition(".")[2] for name in layers})),
        loras_per_batch=settings.sglang.loras_per_batch or 2 * len(prompts) + 1,
        max_context=settings.max_context,
        context=min(settings.max_context + _CONTEXT_MARGIN, base.model.config.max_position_embeddings),
    )
    logs = Path(config.runs) / config.name / "servers"
    async with SGLangSampler.open(base, layers, settings.sglang, launch, canary, logs=logs, notice=notice) as sampler:
        yield sampler
