"""`mappa serve` has a config of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Struct

from mappa.config.described import doc
from mappa.config.reading import apply, checked
from mappa.errors import ConfigError


class ServeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mappa serve`: one base, and an adapter for every model that a client creates."""

    model: Annotated[str, doc("base model: a local folder, a hub name, or 'smollm2-135m-instruct'", min_length=1)]
    name: Annotated[str, doc("what clients call the base; empty: as `model`")] = ""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], doc("of the frozen base")] = "auto"
    host: Annotated[str, doc("address to listen on; any but a loopback address opens the server to others")] = (
        "127.0.0.1"
    )
    port: Annotated[int, doc("port to listen on; 0 = any that is free", ge=0, le=65535)] = 8000
    state: Annotated[str, doc("folder of saved weights and of what survives a restart")] = "serve-state"
    rank: Annotated[int, doc("largest rank a model may have; all are computed at this one", ge=1, le=256)] = 32
    alpha: Annotated[float, doc("LoRA scale is alpha / the model's own rank", gt=0)] = 32.0
    max_models: Annotated[int, doc("models held in memory", ge=1)] = 16
    max_samplers: Annotated[int, doc("saved weights held in memory for sampling; others are read again", ge=1)] = 32
    max_context: Annotated[int, doc("longest training sequence, and longest prompt plus output, tokens", ge=16)] = 2048
    max_rows: Annotated[int, doc("sequences decoded together", ge=1)] = 48
    tokens_per_micro_batch: Annotated[
        int, doc("packed tokens per forward and backward pass, prefixes counted once", ge=64)
    ] = 4096
    checkpoint_activations: Annotated[
        bool, doc("keep one hidden state per layer and compute the rest again in the backward pass")
    ] = False
    exact: Annotated[
        bool, doc("sample the same, bit for bit, whatever else is sampled with it; training always is so. Slower")
    ] = False
    gather: Annotated[float, doc("seconds a forward_backward waits for those of other clients to join it", ge=0)] = (
        0.005
    )
    session_timeout: Annotated[
        float, doc("seconds without a sign of its client after which a session is closed", gt=0)
    ] = 600.0
    result_timeout: Annotated[float, doc("seconds a finished request's result is kept", gt=0)] = 600.0
    threads: Annotated[int, doc("CPU threads; 0 = all cores", ge=0)] = 0


def serve_config(overrides: Sequence[str]) -> ServeConfig:
    """A ServeConfig from `key=value` settings. Raises ConfigError."""
    raw: dict[str, Any] = {}
    for text in overrides:
        apply(raw, text)
    config = checked(raw, ServeConfig, where="mappa serve")
    if config.max_context > config.tokens_per_micro_batch:
        raise ConfigError(
            f"mappa serve: max_context={config.max_context} does not fit "
            f"tokens_per_micro_batch={config.tokens_per_micro_batch}; raise it"
        )
    return config
