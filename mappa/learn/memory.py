"""What one training step of the learner needs on each GPU: arithmetic, to choose settings before there is a machine.

Everything is predicted. Base, adapters, masters, gradients, moments and what autograd keeps of a forward pass are
compared with real tensors of small models on a CPU, of one rank and of two (tests/learn/test_memory.py). Buckets,
gathered matrices and scratch space follow from the sources of DeepSpeed 0.19.8 and of the kernels, and nothing has been
measured on a GPU. Not counted: the CUDA context, what the allocator keeps unused, and a server that generates on the
same GPU.

T tokens are packed into a micro-batch, U of them predict an action token; h is the hidden size, s the bytes of an
element of the base. There is never a [U, vocabulary] tensor.
"""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa.learn.shape import ModelShape

GB = 10**9
FLOAT = 4
"""Bytes of an fp32 element: adapters, their gradients and moments, log-prob directions, norms."""

REDUCE_BUCKET = 50_000_000
"""Elements ZeRO reduces at a time at most (`reduce_bucket_size`): smaller adapters need no more room than their own."""
PLAIN_BUCKET = 500_000_000
"""The same of DeepSpeed without ZeRO."""
LOGIT_ROWS, LOGIT_COLUMNS = 4096, 8192
"""The largest piece of numerators the log-prob kernel holds on a GPU (mappa_kernels/gpu/sweep.py)."""
CPU_SCRATCH = 4 * 2**20
"""What it was measured to hold on a CPU."""


class MemorySettings(Struct, frozen=True, kw_only=True):
    """What decides about memory; the names are those of `LearnConfig`."""

    rank: int = 16
    roles: int = 3
    """How many."""
    targets: tuple[str, ...] = LearnConfig().targets
    first_layer: int = 0
    zero_stage: int = 2
    shard_base: bool = False
    """ZeRO-3 divides the frozen base too, and gathers one matrix at a time."""
    offload: bool = False
    checkpoint_activations: bool = True
    world_size: int = 8
    tokens: int = 8192
    """T: packed tokens of a micro-batch on one rank."""
    scored: int | None = None
    """U: those that predict an action token; None: all, the worst case."""
    accumulation: bool = True
    """A step has several micro-batches per rank."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the frozen base, and of the hidden states."""
    device: Literal["cuda", "cpu"] = "cuda"
    """The CPU's attention copies key/value heads per query head (exact for sequences that share no prefix)."""

    @classmethod
    def of(cls, config: LearnConfig, *, dtype: Literal["bfloat16", "float32"], world_size: int) -> MemorySettings:
        """As `config` says, with full micro-batches and every token scored."""
        return cls(
            rank=config.rank,
            roles=len(config.roles),
            targets=config.targets,
            first_layer=config.first_layer,
            zero_stage=config.zero_stage,
            shard_base=config.shard_base,
            offload=config.offload,
            checkpoint_activations=config.checkpoint_activations,
            tokens=config.tokens_per_micro_batch,
            dtype=dtype,
            world_size=world_size,
        )

    @property
    def element(self) -> int:
        """s: bytes of an element of the base."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def scored_rows(self) -> int:
        return self.tokens if self.scored is None else self.scored


class Memory(Struct, frozen=True, kw_only=True):
    """Predicted bytes on one GPU, by part."""

    base: int
    """The frozen base, or this rank's share of it."""
    gathered: int
    """Whole matrices of a divided base, while they are used."""
    adapters: int
    masters: int
    """ZeRO's own copy of the adapters' share that this rank updates."""
    gradients: int
    """Of the adapters, at their peak: ZeRO-1 divides them only after the last micro-batch."""
    moments: int
    """Both of AdamW's."""
    buckets: int
    """Gradients on their way to other ranks."""
    activations: int
    """What autograd keeps of a forward pass; with checkpointing, each layer's input."""
    recomputed: int
    """With checkpointing: the same of the one layer that is run again."""
    logprob: int
    """The log-prob kernel: directions [U, h] in fp32, and its scratch space at its peak."""
    workspace: int
    """Short-lived tensors of a layer's backward pass: an estimate, on the high side."""
    host: int
    """Bytes of the optimiser in host memory (offload). Not on the GPU, and not in `total`."""

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in DEVICE_PARTS)

    def fits(self, limit: int = 80 * GB) -> bool:
        return self.total <= limit


DEVICE_PARTS = tuple(name for name in Memory.__struct_fields__ if name != "host")


def predict(shape: ModelShape, settings: MemorySettings) -> Memory:
    """Bytes of one training step on one rank. Raises LearnError for settings that contradict each other."""
    _check(shape, settings)
    base, gathered = base_bytes(shape, settings)
    kept, recomputed = activation_bytes(shape, settings)
    return Memory(
        base=base,
        gathered=gathered,
        activations=kept,
        recomputed=recomputed,
        logprob=logprob_bytes(shape, settings),
        workspace=_workspace(shape, settings),
        **_adapter_parts(shape, settings),
    )


def sharding_saves(shape: ModelShape, settings: MemorySettings) -> int:
    """Bytes per GPU that ZeRO-3 with `shard_base` takes off the base, less what it gathers."""
    divided = sum(base_bytes(shape, replace(settings, zero_stage=3, shard_base=True)))
    return sum(base_bytes(shape, replace(settings, shard_base=False))) - divided


def adapter_elements(shape: ModelShape, settings: MemorySettings) -> int:
    """Elements of one role's adapter: rank · (in + out) for every adapted linear."""
    per_layer = sum(settings.rank * sum(shape.linears[name]) for name in settings.targets)
    return per_layer * (shape.layers - settings.first_layer)


def base_bytes(shape: ModelShape, settings: MemorySettings) -> tuple[int, int]:
    """(resident, gathered). A divided base keeps its vectors whole, and gathers its matrices one at a time; the
    embedding is the largest."""
    whole = sum(shape.tensors)
    if not settings.shard_base:
        return whole * settings.element, 0
    longest = max(shape.hidden, shape.heads * shape.head_dim if shape.qkv_bias else 0)
    kept = sum(n for n in shape.tensors if n <= longest)
    divided = sum(-(-n // settings.world_size) for n in shape.tensors)
    return (kept + divided) * settings.element, max(shape.tensors) * settings.element


def _adapter_parts(shape: ModelShape, settings: MemorySettings) -> dict[str, int]:
    """Adapters, masters, gradients, moments, buckets and host bytes: all fp32, all linear in the number of roles."""
    stage, world = settings.zero_stage, settings.world_size
    own = adapter_elements(shape, settings)
    padded = own if stage == 0 else 2 * world * math.ceil(own / (2 * world))  # ZeRO aligns each role's weights
    whole = FLOAT * padded * settings.roles
    share = whole // world if stage else whole
    moved = settings.offload
    if stage in (0, 1):
        gradients = whole  # reduced in place; each rank then steps with its share
    elif moved:
        gradients = 0
    else:
        gradients = share * (2 if stage == 2 and settings.accumulation else 1)  # the sum so far, and what is added
    # Masters, two moments, gradient; ZeRO 1 and 2 keep a buffer to copy back from, and the sum of gradients so far.
    copies = 4 if stage == 3 else 6 if settings.accumulation else 5
    host = share * copies if moved else 0
    return {
        "adapters": whole,
        "masters": 0 if stage == 0 or moved else share,
        "gradients": gradients,
        "moments": 0 if moved else 2 * share,
        "buckets": _buckets(padded * settings.roles, settings),
        "host": host,
    }


def _buckets(elements: int, settings: MemorySettings) -> int:
    """The bucket that fills, which ZeRO allocates in full, and a flat copy of what is being reduced."""
    alone = settings.world_size == 1
    if settings.zero_stage == 0:
        return 0 if alone else FLOAT * min(elements, PLAIN_BUCKET)
    return FLOAT * min(elements, REDUCE_BUCKET) * (1 if alone else 2)


def activation_bytes(shape: ModelShape, settings: MemorySettings) -> tuple[int, int]:
    """(kept, recomputed): what autograd keeps between the forward and the backward pass of one micro-batch, and with
    checkpointing what one layer keeps while it is run again. The directions of the log-prob kernel are not in it."""
    tokens, scored, s = settings.tokens, settings.scored_rows, settings.element
    adapted = shape.layers - settings.first_layer
    norm = FLOAT * (shape.hidden + 1)  # the states in fp32 and the root of their mean square
    rotary = tokens * 2 * shape.head_dim * s
    # After the last layer: two indices of the scored rows, the final norm.
    top = scored * (norm + 16)
    attention, mlp = _attention_bytes(shape, settings), norm + _mlp_bytes(shape, settings)
    if settings.checkpoint_activations:
        inputs = adapted * tokens * shape.hidden * s
        # The last layer runs its MLP on the scored rows alone, the others on all.
        one = (attention + norm) * tokens + mlp * (tokens if adapted > 1 else scored)
        return rotary + inputs + top, one
    # What enters the first adapted layer needs no gradient, so neither does its first norm.
    norms = (adapted - 1) * norm * tokens
    layers = adapted * attention * tokens + mlp * ((adapted - 1) * tokens + scored)
    return rotary + norms + layers + top, 0


def _attention_bytes(shape: ModelShape, settings: MemorySettings) -> int:
    """Per token and layer: inputs of adapted linears and their low-rank activations; queries, keys, values, output
    and log-sum-exp of the attention."""
    s = settings.element
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    adapted = [name for name in ("q_proj", "k_proj", "v_proj") if name in settings.targets]
    total = FLOAT * settings.rank * len(adapted) + (s * shape.hidden if adapted else 0)
    if "o_proj" in settings.targets:
        total += FLOAT * settings.rank + s * queries
    if shape.head_norms:
        total += FLOAT * (queries + keys + shape.heads + shape.kv_heads)
    copied = queries if settings.device == "cpu" else keys
    return total + s * (2 * queries + 2 * copied) + FLOAT * shape.heads


def _mlp_bytes(shape: ModelShape, settings: MemorySettings) -> int:
    """Per row and layer: gate, its activation, up and their product, each as wide as the intermediate size."""
    s = settings.element
    adapted = [name for name in ("gate_proj", "up_proj") if name in settings.targets]
    total = FLOAT * settings.rank * len(adapted) + (s * shape.hidden if adapted else 0)
    if "down_proj" in settings.targets:
        total += FLOAT * settings.rank + s * shape.intermediate
    return total + 3 * s * shape.intermediate


def logprob_bytes(shape: ModelShape, settings: MemorySettings) -> int:
    """Directions [U, h] in fp32, which stay until the backward pass, and the larger of two passing needs: numerators
    of one piece (with a second copy of the directions when pieces are joined), or the gradient of the hidden states."""
    rows, s = settings.scored_rows, settings.element
    directions = FLOAT * rows * shape.hidden
    if settings.device == "cpu":
        return directions + max(CPU_SCRATCH, s * rows * shape.hidden)
    piece = s * min(rows, LOGIT_ROWS) * min(shape.vocabulary, LOGIT_COLUMNS)
    joined = directions if rows > LOGIT_ROWS else 0
    return directions + max(piece + joined, directions + s * rows * shape.hidden)


def _workspace(shape: ModelShape, settings: MemorySettings) -> int:
    """The micro-batch's states below the adapters, and the MLP's backward pass in one layer: gradients as wide as the
    intermediate size, one of them summed up in fp32, and a few of the hidden size."""
    s = settings.element
    wide = (3 * s + FLOAT) * shape.intermediate
    return settings.tokens * (wide + 4 * s * shape.hidden)


def _check(shape: ModelShape, settings: MemorySettings) -> None:
    unknown = [name for name in settings.targets if name not in shape.linears]
    if unknown or not settings.targets:
        raise LearnError(f"targets must be some of {', '.join(shape.linears)}; got {', '.join(settings.targets)}")
    if not 0 <= settings.first_layer < shape.layers:
        raise LearnError(f"first_layer={settings.first_layer} leaves no adapted layer among {shape.layers}")
    if settings.shard_base and settings.zero_stage != 3:
        raise LearnError(f"shard_base needs zero_stage=3; it is {settings.zero_stage}")
    if settings.offload and settings.zero_stage == 0:
        raise LearnError("offload needs zero_stage 1, 2 or 3")
