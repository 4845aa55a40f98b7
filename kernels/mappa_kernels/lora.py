"""Several LoRA adapters over one batch whose tokens are sorted by role: y = base + scale (x A_gᵀ) B_gᵀ.

The base matrix product stays with the vendor's library; this adds the low-rank part. The backward gives every
role's A and B a dense gradient in a fixed order, zeros where a role has no token: under ZeRO all ranks must reduce
the same tensors in the same order, whichever roles their batch holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mappa_kernels import checks, dispatch
from mappa_kernels.checks import LARGEST_RANK

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def grouped_lora(
    x: Tensor,
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    offsets: Tensor | Sequence[int],
    scale: float,
    base_out: Tensor,
    *,
    backend: dispatch.Backend = "auto",
) -> Tensor:
    """base_out + scale (x A_gᵀ) B_gᵀ for the tokens [offsets[g], offsets[g + 1]) of each role g.

    x [T, in]; A one [r, in] and B one [out, r] per role, all of one type (fp32 adapters over a bf16 x are fine);
    offsets [R + 1], ascending from 0 to T; scale a finite number, which gets no gradient; base_out [T, out] of x's
    type. Returns [T, out] of that type.
    Differentiable in x, A, B and base_out; dense gradients for every role.

    Raises ValueError naming the argument, BackendError where `backend` cannot run.
    """
    bounds, factor = _check(x, [A], [B], offsets, scale, [base_out])
    return _apply(_engine(backend, x, A[0]), x, [A], [B], bounds, factor, [base_out])[0]


def grouped_lora_reference(
    x: Tensor, A: Sequence[Tensor], B: Sequence[Tensor], offsets: Tensor | Sequence[int], scale: float, base_out: Tensor
) -> Tensor:
    """`grouped_lora` in plain torch, on any device."""
    bounds, factor = _check(x, [A], [B], offsets, scale, [base_out])
    return _apply(EagerLora(), x, [A], [B], bounds, factor, [base_out])[0]


def grouped_lora_fused(
    x: Tensor,
    A: Sequence[Sequence[Tensor]],
    B: Sequence[Sequence[Tensor]],
    offsets: Tensor | Sequence[int],
    scale: float,
    base_out: Sequence[Tensor],
    *,
    backend: dispatch.Backend = "auto",
) -> tuple[Tensor, ...]:
    """`grouped_lora` for several projections of one x (q, k, v; gate, up), which is read once.

    A, B and base_out hold one entry per projection, each as `grouped_lora` takes it; all projections have the same
    roles and ranks. Returns one output per projection.
    """
    bounds, factor = _check(x, A, B, offsets, scale, base_out)
    return _apply(_engine(backend, x, A[0][0]), x, A, B, bounds, factor, base_out)


def grouped_lora_fused_reference(
    x: Tensor,
    A: Sequence[Sequence[Tensor]],
    B: Sequence[Sequence[Tensor]],
    offsets: Tensor | Sequence[int],
    scale: float,
    base_out: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """`grouped_lora_fused` in plain torch, on any device."""
    bounds, factor = _check(x, A, B, offsets, scale, base_out)
    return _apply(EagerLora(), x, A, B, bounds, factor, base_out)


def _check(
    x: Tensor,
    A: Sequence[Sequence[Tensor]],
    B: Sequence[Sequence[Tensor]],
    offsets: Tensor | Sequence[int],
    scale: object,
    base_out: Sequence[Tensor],
) -> tuple[tuple[int, ...], float]:
    """Refuse what cannot be computed; returns the offsets and the scale as plain numbers."""
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    checks.tensor("x", x, 2, FLOAT_TYPES, device)
    checks.require(x.shape[1] > 0, "x", "has no columns")
    checks.require(checks.size("A", A) > 0 and checks.size("A", A[0]) > 0, "A", "needs one matrix per role")
    checks.tensor("A", A[0][0], 2, FLOAT_TYPES, device)
    roles, dtype, rank = len(A[0]), A[0][0].dtype, A[0][0].shape[0]
    for name, matrices in (("B", B), ("base_out", base_out)):
        count = checks.size(name, matrices)
        checks.require(count == len(A), name, f"expected {len(A)} projection(s), got {count}")
    for downs, ups, base in zip(A, B, base_out, strict=True):
        checks.tensor("base_out", base, 2, (x.dtype,), device)
        checks.length("base_out", base, len(x), "row of x")
        for name, of_roles in (("A", downs), ("B", ups)):
            count = checks.size(name, of_roles)
            checks.require(count == roles, name, f"expected one matrix per role ({roles}), got {count}")
        for role, (down, up) in enumerate(zip(downs, ups, strict=True)):
            _check_matrix("A", role, down, (rank, x.shape[1]), dtype, device)
            _check_matrix("B", role, up, (base.shape[1], rank), dtype, device)
    bounds = checks.integers("offsets", offsets)
    checks.tensor("offsets", bounds, 1, checks.INDEX_TYPES, bounds.device)
    checks.offsets("offsets", bounds, roles, len(x))
    has_gradient = isinstance(scale, Tensor) and scale.requires_grad
    checks.require(not has_gradient, "scale", "has no gradient here; pass scale.detach()")
    return tuple(bounds.tolist()), checks.finite("scale", scale)


def _check_matrix(
    name: str, role: int, value: Tensor, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    checks.tensor(name, value, 2, (dtype,), device)
    same = tuple(value.shape) == shape
    checks.require(same, name, f"of role {role}: expected shape {shape}, got {tuple(value.shape)}")


def _engine(backend: str, x: Tensor, down: Tensor) -> LoraEngine:
    """The back-end for these arguments, imported where it is used: the package needs torch alone."""
    rank = down.shape[0]
    barred = {"triton": f"its tiles hold ranks up to {LARGEST_RANK}, not {rank}"} if rank > LARGEST_RANK else {}
    name = dispatch.choose(backend, "grouped_lora", x.device, torch.promote_types(x.dtype, down.dtype), barred)
    if name == "cpu":
        from mappa_kernels.cpu import CpuLora

        return CpuLora()
    if name == "triton":
        from mappa_kernels.gpu.lora import TritonLora

        return TritonLora()
    return EagerLora()


def _apply(
    engine: LoraEngine,
    x: Tensor,
    A: Sequence[Sequence[Tensor]],
    B: Sequence[Sequence[Tensor]],
    offsets: tuple[int, ...],
    scale: float,
    base_out: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    flat = [matrix for matrices in (*A, *B) for matrix in matrices]
    out: tuple[Tensor, ...] = _GroupedLora.apply(engine, x, offsets, scale, len(A), *base_out, *flat)
    return out


class _GroupedLora(torch.autograd.Function):
    """Flat arguments: P base outputs, then A (P x R), then B (P x R). Saves x and the low-rank activations."""

    @staticmethod
    def forward(
        ctx: Any, engine: LoraEngine, x: Tensor, offsets: tuple[int, ...], scale: float, projections: int, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        matrices = projections * (len(offsets) - 1)
        base_out, down, up = flat[:projections], flat[projections : projections + matrices], flat[-matrices:]
        outputs, low = engine.forward(x, down, up, offsets, scale, base_out)
        ctx.engine, ctx.offsets, ctx.scale = engine, offsets, scale
        ctx.save_for_backward(x, low, *down, *up)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, *matrices = ctx.saved_tensors
        half = len(matrices) // 2
        down, up, needs_x = matrices[:half], matrices[half:], ctx.needs_input_grad[1]
        grad_x, *parts = ctx.engine.backward(x, low, down, up, ctx.offsets, ctx.scale, grads, needs_x)
        return None, grad_x, None, None, None, *grads, *(gradient for part in parts for gradient in part)


class LoraEngine(Protocol):
    """One back-end's two passes. `down` holds every A and `up` every B, by projection, then by role."""

    def forward(
        self,
        x: Tensor,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        offsets: tuple[int, ...],
        scale: float,
        base_out: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """One output per projection, and what `backward` takes as `low`."""
        ...

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
        """Gradients in x, in every A and in every B."""
        ...


class EagerLora:
    """Plain torch, one role after the other; the projections' A stand on top of each other, so x is read once."""

    def forward(
        self,
        x: Tensor,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        offsets: tuple[int, ...],
        scale: float,
        base_out: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        roles, rank, dtype = len(offsets) - 1, down[0].shape[0], down[0].dtype
        outputs = tuple(base.clone() for base in base_out)
        low = x.new_empty(len(x), len(outputs) * rank, dtype=dtype)
        for role, rows in _segments(offsets):
            torch.mm(x[rows].to(dtype), torch.cat(list(down[role::roles])).T, out=low[rows])
            for index, (output, matrix) in enumerate(zip(outputs, up[role::roles], strict=True)):
                part = low[rows, index * rank : (index + 1) * rank]
                output[rows] += (part @ matrix.T * scale).to(output.dtype)
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
        roles, rank, dtype = len(offsets) - 1, down[0].shape[0], low.dtype
        grad_down, grad_up = ([torch.zeros_like(matrix) for matrix in matrices] for matrices in (down, up))
        grad_x = torch.zeros_like(x) if needs_x else None
        for role, rows in _segments(offsets):
            grad_low = torch.empty_like(low[rows])
            for index, grad in enumerate(grads):
                columns = slice(index * rank, (index + 1) * rank)
                tokens = grad[rows].to(dtype) * scale
                grad_up[index * roles + role] = tokens.T @ low[rows, columns]
                torch.mm(tokens, up[index * roles + role], out=grad_low[:, columns])
            grad_down[role::roles] = (grad_low.T @ x[rows].to(dtype)).split(rank)
            if grad_x is not None:
                grad_x[rows] = (grad_low @ torch.cat(list(down[role::roles]))).to(x.dtype)
        return grad_x, grad_down, grad_up


def _segments(offsets: tuple[int, ...]) -> list[tuple[int, slice]]:
    """Roles that have tokens, with their rows."""
    pairs = enumerate(itertools.pairwise(offsets))
    return [(role, slice(start, stop)) for role, (start, stop) in pairs if stop > start]
