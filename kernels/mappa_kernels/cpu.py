"""The C++ back-end: what `mappa_kernels._C` computes, in the shapes the operations expect."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from mappa_kernels import dispatch
from mappa_kernels.sweep import Sweep


class CpuEngine:
    """`linear_logprob` in one sweep over the vocabulary (csrc/sweep.cpp)."""

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        *,
        direction: bool,
        entropy_direction: bool,
    ) -> Sweep:
        parts = extension().sweep(hidden, weight, targets.long(), inverse_temperature, direction, entropy_direction)
        return Sweep(*parts)

    def weight_gradient(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        maximum: Tensor,
        log_total: Tensor,
        entropy: Tensor,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor:
        gradient: Tensor = extension().weight_gradient(
            hidden,
            weight,
            targets.long(),
            inverse_temperature,
            maximum,
            log_total,
            entropy,
            grad_logprob.contiguous(),
            None if grad_entropy is None else grad_entropy.contiguous(),
        )
        return gradient


class CpuLora:
    """`grouped_lora`: blocks of tokens stay in the cache through all products (csrc/lora.cpp)."""

    def forward(
        self,
        x: Tensor,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        offsets: tuple[int, ...],
        scale: float,
        base_out: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        outputs, low = extension().lora_forward(x, down, up, offsets, scale, [base.contiguous() for base in base_out])
        return tuple(outputs), low

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
        parts: tuple[Tensor | None, Sequence[Tensor], Sequence[Tensor]] = extension().lora_backward(
            x, low, down, up, offsets, scale, [grad.contiguous() for grad in grads], needs_x
        )
        return parts


def extension() -> ModuleType:
    """`mappa_kernels._C`. Raises BackendError where it is not built."""
    module = dispatch.extension()
    if module is None:
        raise dispatch.BackendError("mappa_kernels._C is not built")
    return module


def description() -> dict[str, str]:
    """What the C++ back-end runs on: its instruction set, and how it multiplies bfloat16.

    bfloat16 "brgemm": the processor's own instructions; "float32": weights are converted slab by slab.
    """
    return {"instruction_set": extension().instruction_set(), "bfloat16": extension().bfloat16_path()}
