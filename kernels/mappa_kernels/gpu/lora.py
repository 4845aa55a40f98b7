# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""`grouped_lora` on a GPU. Token tiles never cross a role; sums over tokens are cut at fixed places, no atomics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mappa_kernels import dispatch
from mappa_kernels.checks import LARGEST_RANK

ROWS = 64
"""Tokens of a tile."""
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SPAN = 16
"""Tiles whose sums one program of `reduce` adds up."""


@triton.jit
def product(a, b, acc, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b on the tensor cores, in the adapters' type; PRECISION is how fp32 is multiplied."""
    if PRECISION == "ieee":  # the interpreter, which multiplies bf16 wrongly
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a.to(TYPE), b.to(TYPE), acc, input_precision=PRECISION)


@triton.jit
def shrink(
    x, matrices, low, roles, starts, stops, scale, width, rank, stride_x, stride_m, stride_mr, stride_mk, stride_l,
    RANK: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """low [T, rank] = scale x M_g', with M_g(r, k) = matrices[g * stride_m + r * stride_mr + k * stride_mk]."""
    tile = tl.program_id(0)
    role, start, stop = tl.load(roles + tile), tl.load(starts + tile), tl.load(stops + tile)
    t = start + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    acc = tl.zeros((ROWS, RANK), tl.float32)
    base = matrices + role.to(tl.int64) * stride_m
    for first in range(0, width, INNER):
        k = first + tl.arange(0, INNER)
        a = tl.load(
            x + t[:, None].to(tl.int64) * stride_x + k[None, :],
            mask=(t[:, None] < stop) & (k[None, :] < width), other=0.0,
        )  # fmt: skip
        b = tl.load(
            base + k[:, None].to(tl.int64) * stride_mk + r[None, :] * stride_mr,
            mask=(k[:, None] < width) & (r[None, :] < rank), other=0.0,
        )  # fmt: skip
        acc = product(a, b, acc, b.dtype, PRECISION)
    at = low + t[:, None].to(tl.int64) * stride_l + r[None, :]
    tl.store(at, acc * scale, mask=(t[:, None] < stop) & (r[None, :] < rank))


@triton.jit
def expand(
    low, matrices, base, out, roles, starts, stops, width, rank, stride_l, stride_m, stride_mr, stride_mk, stride_o,
    ADD: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [T, width] = base + low M_g, in fp32; base is left out without ADD."""
    tile = tl.program_id(0)
    role, start, stop = tl.load(roles + tile), tl.load(starts + tile), tl.load(stops + tile)
    t = start + tl.arange(0, ROWS)
    r = tl.arange(0, RANK)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    a = tl.load(
        low + t[:, None].to(tl.int64) * stride_l + r[None, :],
        mask=(t[:, None] < stop) & (r[None, :] < rank), other=0.0,
    )  # fmt: skip
    b = tl.load(
        matrices + role.to(tl.int64) * stride_m + r[:, None] * stride_mr + k[None, :].to(tl.int64) * stride_mk,
        mask=(r[:, None] < rank) & (k[None, :] < width), other=0.0,
    )  # fmt: skip
    inside = (t[:, None] < stop) & (k[None, :] < width)
    at = t[:, None].to(tl.int64) * stride_o + k[None, :]
    value = product(a, b, tl.zeros((ROWS, COLUMNS), tl.float32), b.dtype, PRECISION)
    if ADD:
        value += tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def reduce(
    low, x, sums, spans, stops, width, rank, stride_l, stride_x,
    TYPE: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """sums [span, rank, width] = low' x over the tokens of one span, tile after tile."""
    span = tl.program_id(0)
    start, stop = tl.load(spans + span), tl.load(stops + span)
    r = tl.arange(0, RANK)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((RANK, COLUMNS), tl.float32)
    for tile in range(TILES):
        t = start + tile * ROWS + tl.arange(0, ROWS)
        a = tl.load(
            low + t[None, :].to(tl.int64) * stride_l + r[:, None],
            mask=(t[None, :] < stop) & (r[:, None] < rank), other=0.0,
        )  # fmt: skip
        b = tl.load(
            x + t[:, None].to(tl.int64) * stride_x + k[None, :],
            mask=(t[:, None] < stop) & (k[None, :] < width), other=0.0,
        )  # fmt: skip
        acc = product(a, b, acc, TYPE, PRECISION)
    at = sums + (span.to(tl.int64) * rank + r[:, None]) * width + k[None, :]
    tl.store(at, acc, mask=(r[:, None] < rank) & (k[None, :] < width))


@dataclass(frozen=True)
class _Tiles:
    """Token tiles of all roles: role, first token and end of the role's tokens, each int32 on the device."""

    roles: Tensor
    starts: Tensor
    stops: Tensor
    spans: list[tuple[int, int, int]]
    """(role, first token, end) of the ranges `reduce` sums up."""

    @classmethod
    def of(cls, offsets: tuple[int, ...], device: torch.device) -> _Tiles:
        tiles, spans = [], []
        for role in range(len(offsets) - 1):
            stop = offsets[role + 1]
            tiles += [(role, start, stop) for start in range(offsets[role], stop, ROWS)]
            spans += [
                (role, start, min(start + ROWS * SPAN, stop)) for start in range(offsets[role], stop, ROWS * SPAN)
            ]
        columns = torch.tensor(tiles or [(0, 0, 0)], dtype=torch.int32, device=device).T.contiguous()
        return cls(columns[0], columns[1], columns[2], spans)


class TritonLora:
    """Low-rank activations in fp32; products of the adapters' small side on the tensor cores in the adapters' type.

    The A of projections whose ranks fit one tile together stand on top of each other, so one program reads x for all
    of them: q, k, v up to rank 21, gate and up to rank 32.
    """

    def forward(
        self,
        x: Tensor,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        offsets: tuple[int, ...],
        scale: float,
        base_out: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        x, roles, rank = _rows(x), len(offsets) - 1, down[0].shape[0]
        outputs = tuple(torch.empty_like(base, memory_format=torch.contiguous_format) for base in base_out)
        with torch.cuda.device_of(x):
            tiles = _Tiles.of(offsets, x.device)
            low = torch.empty(len(x), len(base_out) * rank, device=x.device)
            for group in _together(len(base_out), rank):
                _shrink(x, _stacked(down, roles, group), _columns(low, rank, group), tiles, scale, by_row=True)
            for p, (base, output) in enumerate(zip(base_out, outputs, strict=True)):
                matrices = torch.stack(list(up[p * roles : (p + 1) * roles])).mT
                _expand(_columns(low, rank, range(p, p + 1)), matrices, base.contiguous(), output, tiles)
        return outputs, low

    def backward(
        self,
        x: Tensor,
        low: Tensor,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        offsets: tuple[int, ...],
        scale: float,
        grads: Sequence[Tensor],
        needs_x: bool,
    ) -> tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]]:
        x, roles, rank, dtype = _rows(x), len(offsets) - 1, down[0].shape[0], down[0].dtype
        grad_down: list[Tensor] = []
        grad_up: list[Tensor] = []
        with torch.cuda.device_of(x):
            tiles = _Tiles.of(offsets, x.device)
            grad_low = torch.empty_like(low)
            for p, grad in enumerate(map(_rows, grads)):
                own = range(p, p + 1)
                matrices = torch.stack(list(up[p * roles : (p + 1) * roles]))
                _shrink(grad, matrices, _columns(grad_low, rank, own), tiles, scale, by_row=False)
                grad_up += _reduce(_columns(low, rank, own), grad, tiles, roles, dtype, transposed=True)
            grad_x = torch.zeros(x.shape, device=x.device) if needs_x else None
            for group in _together(len(grads), rank):
                part = _columns(grad_low, rank, group)
                by_role = [total.split(rank) for total in _reduce(part, x, tiles, roles, dtype, transposed=False)]
                grad_down += [totals[i] for i in range(len(group)) for totals in by_role]
                if grad_x is not None:
                    _expand(part, _stacked(down, roles, group), grad_x, grad_x, tiles)
        return None if grad_x is None else grad_x.to(x.dtype), grad_down, grad_up


def _together(projections: int, rank: int) -> list[range]:
    """Projections in runs whose ranks fit one tile."""
    step = max(1, LARGEST_RANK // max(1, rank))
    return [range(first, min(first + step, projections)) for first in range(0, projections, step)]


def _stacked(matrices: Sequence[Tensor], roles: int, group: range) -> Tensor:
    """[R, rank of all projections of the group, width]."""
    return torch.stack([torch.cat([matrices[p * roles + role] for p in group]) for role in range(roles)])


def _columns(low: Tensor, rank: int, group: range) -> Tensor:
    """The low-rank activations of a group of projections."""
    return low[:, group.start * rank : group.stop * rank]


def _shrink(x: Tensor, matrices: Tensor, low: Tensor, tiles: _Tiles, scale: float, *, by_row: bool) -> None:
    """`matrices` is [R, rank, width] by row, [R, width, rank] otherwise."""
    if not len(x):
        return
    rank = low.shape[1]
    stride_r, stride_k = (
        (matrices.stride(1), matrices.stride(2)) if by_row else (matrices.stride(2), matrices.stride(1))
    )
    shrink[(len(tiles.roles),)](
        x, matrices, low, tiles.roles, tiles.starts, tiles.stops, scale, x.shape[1], rank, x.stride(0),
        matrices.stride(0), stride_r, stride_k, low.stride(0),
        RANK=_padded(rank), ROWS=ROWS, INNER=inner(rank), PRECISION=_precision(),
        num_warps=warps(rank), num_stages=3,
    )  # fmt: skip


def _expand(low: Tensor, matrices: Tensor, base: Tensor, out: Tensor, tiles: _Tiles) -> None:
    """`matrices` is [R, rank, width], in any strides; `base` and `out` may be the same: each program reads its own."""
    if not len(out):
        return
    width = out.shape[1]
    block = columns(low.shape[1])
    expand[(len(tiles.roles), triton.cdiv(width, block))](
        low, matrices, base, out, tiles.roles, tiles.starts, tiles.stops, width, low.shape[1], low.stride(0),
        matrices.stride(0), matrices.stride(1), matrices.stride(2), out.stride(0),
        ADD=True, RANK=_padded(low.shape[1]), ROWS=ROWS, COLUMNS=block, PRECISION=_precision(),
        num_warps=warps(low.shape[1]), num_stages=2,
    )  # fmt: skip


def _reduce(low: Tensor, x: Tensor, tiles: _Tiles, roles: int, dtype: torch.dtype, *, transposed: bool) -> list[Tensor]:
    """low' x by role, [rank, width] or transposed; zeros where a role has no token."""
    rank, width = low.shape[1], x.shape[1]
    spans = torch.tensor(tiles.spans or [(0, 0, 0)], dtype=torch.int32, device=x.device).T.contiguous()
    sums = torch.zeros(len(spans[0]), rank, width, device=x.device)
    if tiles.spans:
        block = columns(rank)
        reduce[(len(tiles.spans), triton.cdiv(width, block))](
            low, x, sums, spans[1], spans[2], width, rank, low.stride(0), x.stride(0),
            TYPE=TYPES[dtype], RANK=_padded(rank), ROWS=ROWS, TILES=SPAN, COLUMNS=block, PRECISION=_precision(),
            num_warps=warps(rank), num_stages=2,
        )  # fmt: skip
    of_role = [[i for i, span in enumerate(tiles.spans) if span[0] == role] for role in range(roles)]
    totals = [sums[own[0] : own[-1] + 1].sum(0) if own else sums.new_zeros(rank, width) for own in of_role]
    return [(total.T if transposed else total).to(dtype).contiguous() for total in totals]


def _precision() -> str:
    """fp32 as three TF32 products, which lose nothing that matters; AMD's matrix cores take fp32 itself."""
    if dispatch.interpreting():
        return "ieee"
    return "bf16x3" if torch.version.hip else "tf32x3"


def columns(rank: int) -> int:
    """Columns of an output tile: what three TF32 products per pair leave room for in the registers."""
    return 128 if rank <= 32 else 32


def warps(rank: int) -> int:
    """Warps of a program, likewise."""
    return 4 if rank <= 32 else 8


def inner(rank: int) -> int:
    """Step of `shrink` along x's width, likewise."""
    return 64 if rank <= 32 else 32


def _padded(rank: int) -> int:
    """Tensor cores take powers of two from 16."""
    return max(16, triton.next_power_of_2(rank))


def _rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
