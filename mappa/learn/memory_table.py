"""What memory.py predicts for the models people ask about, as a table.

python -m bench.learner --dry-run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from mappa.learn.memory import DEVICE_PARTS, GB, Memory, MemorySettings, predict, sharding_saves
from mappa.learn.shape import SHAPES, ModelShape


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
