"""What one training step of the learner needs on each GPU: arithmetic, to choose settings before there is a machine.

    python -m bench.learner --dry-run

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
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError

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


class ModelShape(Struct, frozen=True, kw_only=True):
    """The sizes of a Llama-like decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """One matrix is both embedding and output head."""
    head_norms: bool = False
    """Queries and keys are normalised per head (Qwen3)."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias (Qwen2)."""

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """From a transformers config of the Llama or Qwen families. Raises LearnError for biases it does not know."""
        kind = config.model_type
        if getattr(config, "mlp_bias", False) or (kind != "qwen2" and getattr(config, "attention_bias", False)):
            raise LearnError(f"no memory arithmetic for {kind!r} with biases; give the ModelShape by hand")
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            head_norms=kind == "qwen3",
            qkv_bias=kind == "qwen2",
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def tensors(self) -> list[int]:
        """Elements of every parameter of the model."""
        layer = [i * o for i, o in self.linears.values()] + [self.hidden] * 2 + [self.head_dim] * (2 * self.head_norms)
        if self.qkv_bias:
            layer += [self.linears[name][1] for name in ("q_proj", "k_proj", "v_proj")]
        ends = [self.vocabulary * self.hidden] * (1 if self.tied else 2)
        return [*ends, *layer * self.layers, self.hidden]


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False) -> ModelShape:
    return ModelShape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        tied=tied,
        head_norms=True,
    )


SHAPES = {
    "4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "8B": _qwen3(4096, 12288, 36, 32),
    "14B": _qwen3(5120, 17408, 40, 40),
    "32B": _qwen3(5120, 25600, 64, 64),
}
"""The dense Qwen3 models."""


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


class MemoryRow(Struct, frozen=True, kw_only=True):
    """A line of the table."""

    model: str
    rank: int
    roles: int
    memory: Memory
    kept: int
    """Total bytes without checkpointing."""
    fits: bool
    sharding_saves: int
    """Bytes per GPU."""


def memory_rows(
    shapes: Mapping[str, ModelShape] = SHAPES,
    ranks: Sequence[int] = (16, 64),
    roles: Sequence[int] = (3, 8),
    settings: MemorySettings | None = None,
    limit: int = 80 * GB,
) -> list[MemoryRow]:
    """Predictions for every shape, rank and number of roles; all else as in `settings`."""
    settings = settings or MemorySettings()
    rows = []
    for model, shape in shapes.items():
        for rank in ranks:
            for count in roles:
                mine = replace(settings, rank=rank, roles=count)
                memory = predict(shape, mine)
                rows.append(
                    MemoryRow(
                        model=model,
                        rank=rank,
                        roles=count,
                        memory=memory,
                        kept=predict(shape, replace(mine, checkpoint_activations=False)).total,
                        fits=memory.fits(limit),
                        sharding_saves=sharding_saves(shape, mine),
                    )
                )
    return rows


def memory_table(
    shapes: Mapping[str, ModelShape] = SHAPES,
    ranks: Sequence[int] = (16, 64),
    roles: Sequence[int] = (3, 8),
    settings: MemorySettings | None = None,
    limit: int = 80 * GB,
) -> str:
    """Predicted GB per GPU by part, one line per shape, rank and number of roles, as text."""
    settings = settings or MemorySettings()
    rows = memory_rows(shapes, ranks, roles, settings, limit)
    names = {"gradients": "grads", "activations": "activ.", "recomputed": "1 layer", "workspace": "scratch"}
    head = ["model", "rank", "roles", *(names.get(part, part) for part in DEVICE_PARTS)]
    head += ["total", f"fits {limit / GB:.0f}", "all kept", "sharding saves"]
    lines = [head]
    for row in rows:
        sizes = [getattr(row.memory, part) for part in DEVICE_PARTS] + [row.memory.total]
        cells = [row.model, str(row.rank), str(row.roles), *(f"{size / GB:.2f}" for size in sizes)]
        fits = "NO" if not row.fits else "tight" if row.memory.total > 0.95 * limit else "yes"
        lines.append([*cells, fits, f"{row.kept / GB:.2f}", f"{row.sharding_saves / GB:.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([_title(settings), *table, _NOTES])


def _title(settings: MemorySettings) -> str:
    return (
        f"predicted, not measured: GB (1e9 bytes) per GPU of one training step on {settings.world_size} GPUs; "
        f"{settings.dtype} base{', divided' if settings.shard_base else ''}, fp32 adapters, ZeRO-{settings.zero_stage}"
        f"{', optimiser offloaded' if settings.offload else ''}; {settings.tokens} packed tokens per micro-batch, "
        f"{settings.scored_rows} of them scored; "
        f"activations {'checkpointed' if settings.checkpoint_activations else 'all kept'}"
    )


_NOTES = """\
tight: over 95 %. 1 layer: activations of the layer that is run again. all kept: the total without checkpointing.
sharding saves: what ZeRO-3 with shard_base takes off the base. scratch: an estimate.
Not counted: the CUDA context, what the allocator keeps unused, a server on the same GPU."""
