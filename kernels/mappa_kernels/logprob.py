"""Log-probs of target tokens straight from hidden states, in one sweep over the vocabulary: no [T, V] matrix anywhere.

With logits z = (h . W_v) / tau and p = softmax(z), the gradient of one token's log-prob,

    d logprob_t / d h_t = (W[y_t] - sum_v p_v W_v) / tau  =:  u_t,

does not depend on the loss. Its sum over the vocabulary accumulates in the same sweep as the log-sum-exp (it is
attention with keys = values = W), so the forward saves u_t [T, H] in place of the hidden states and the backward of
any loss of the log-probs is coefficient_t * u_t: two matrix products in all, nothing recomputed.

The entropy gradient takes one accumulator more. A weight that asks for a gradient gets it from a second sweep; a
frozen weight costs nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mappa_kernels import checks, dispatch
from mappa_kernels.sweep import EagerEngine, Engine

HALF_TYPES = (torch.bfloat16, torch.float16)
FLOAT_TYPES = (torch.float32, torch.float64, *HALF_TYPES)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool | Literal["grad"] = False,
    backend: dispatch.Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target under softmax(hidden @ weight.T / temperature), and the entropy of that distribution.

    hidden [T, H] bf16, fp16 or fp32, any strides; weight [V, H] of the same type; targets [T] integers in [0, V);
    temperature a number or [T]. Both results are fp32 [T], accumulated in fp32 (fp64 in, fp64 out on the reference).

    Differentiable in `hidden`, and in `weight` if it requires a gradient. `entropy=True` computes the entropy for
    reading: a loss that sends a gradient into it raises. `entropy="grad"` makes it differentiable.

    Raises ValueError naming the argument, BackendError where `backend` cannot run.
    """
    inverse_temperature = _check(hidden, weight, targets, temperature, entropy)
    name = dispatch.choose(backend, "linear_logprob", hidden.device, hidden.dtype)
    return _apply(_engine(name), hidden, weight, targets, inverse_temperature, entropy)


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool | Literal["grad"] = False,
) -> tuple[Tensor, Tensor | None]:
    """`linear_logprob` in plain torch, on any device, tile by tile."""
    inverse_temperature = _check(hidden, weight, targets, temperature, entropy)
    return _apply(EagerEngine(), hidden, weight, targets, inverse_temperature, entropy)


def _engine(name: str) -> Engine:
    """Back-ends are imported where they are used: the package needs torch alone."""
    if name == "cpu":
        from mappa_kernels.cpu import CpuEngine

        return CpuEngine()
    if name == "triton":
        from mappa_kernels.gpu.sweep import TritonEngine

        return TritonEngine()
    return EagerEngine()


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float | Tensor, entropy: object) -> Tensor:
    """Refuse what cannot be computed; returns 1 / temperature, [T] in the accumulation type."""
    device = hidden.device if isinstance(hidden, Tensor) else torch.device("cpu")
    checks.tensor("hidden", hidden, 2, FLOAT_TYPES, device)
    checks.tensor("weight", weight, 2, (hidden.dtype,), device)
    checks.tensor("targets", targets, 1, checks.INDEX_TYPES, device)
    checks.require(hidden.shape[1] > 0, "hidden", "has no columns")
    checks.require(weight.shape[0] > 0, "weight", "has no rows: the vocabulary is empty")
    same_width = weight.shape[1] == hidden.shape[1]
    checks.require(same_width, "weight", f"is {weight.shape[1]} wide, but hidden is {hidden.shape[1]} wide")
    checks.length("targets", targets, hidden.shape[0], "row of hidden")
    checks.within("targets", targets, 0, weight.shape[0])
    checks.require(entropy in (True, False, "grad"), "entropy", f"expected True, False or 'grad', got {entropy!r}")
    return _inverse(temperature, hidden)


def _inverse(temperature: float | Tensor, hidden: Tensor) -> Tensor:
    dtype = accumulation_type(hidden.dtype)
    if isinstance(temperature, Tensor):
        checks.require(not temperature.requires_grad, "temperature", "has no gradient here; pass temperature.detach()")
    if not isinstance(temperature, Tensor) or temperature.dim() == 0:
        return torch.full((hidden.shape[0],), _reciprocal(temperature, dtype), dtype=dtype, device=hidden.device)
    checks.tensor("temperature", temperature, 1, FLOAT_TYPES, hidden.device)
    checks.length("temperature", temperature, hidden.shape[0], "row of hidden")
    if temperature.numel():
        least, most = torch.aminmax(temperature)  # a NaN makes both NaN
        for extreme in (least, most):
            _reciprocal(extreme, dtype)
    # By way of fp64: the smallest temperatures lose digits in fp32, their reciprocals do not.
    return temperature.double().reciprocal().to(dtype)


def _reciprocal(temperature: object, dtype: torch.dtype) -> float:
    """1 / temperature, which `dtype` holds with all its digits; refused where it cannot be computed with."""
    one, limits = checks.positive("temperature", temperature), torch.finfo(dtype)
    if not limits.tiny <= 1.0 / one <= limits.max:
        raise ValueError(f"temperature: must be in [{1 / limits.max:.1e}, {1 / limits.tiny:.1e}], is {one}")
    return 1.0 / one


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """fp32, except for fp64 input, which stays fp64 (so that gradcheck can be run)."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _apply(
    engine: Engine,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    entropy: bool | Literal["grad"],
) -> tuple[Tensor, Tensor | None]:
    targets = targets.contiguous()  # which the kernels read as a plain array
    # Function.apply reports needs_input_grad under no_grad too: the grad mode must be looked at here.
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        arguments = (hidden, weight, targets, inverse_temperature, entropy == "grad", engine)
        logprob, entropies = _LinearLogProb.apply(*arguments)
    else:
        swept = engine.sweep(hidden, weight, targets, inverse_temperature, direction=False, entropy_direction=False)
        logprob, entropies = swept.logprob, swept.entropy
    return logprob, entropies if entropy else None


class _LinearLogProb(torch.autograd.Function):
    """Saves directions, not hidden states; the hidden states only where the weight asks for a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        entropy_gradient: bool,
        engine: Engine,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        swept = engine.sweep(
            hidden,
            weight,
            targets,
            inverse_temperature,
            direction=needs_hidden,
            entropy_direction=needs_hidden and entropy_gradient,
        )
        statistics = (swept.maximum, swept.log_total, swept.entropy)
        kept = (hidden, weight, targets, inverse_temperature, *statistics) if needs_weight else ()
        ctx.save_for_backward(swept.direction, swept.entropy_direction, *kept)
        ctx.set_materialize_grads(False)
        ctx.entropy_gradient, ctx.engine, ctx.dtype = entropy_gradient, engine, hidden.dtype
        return swept.logprob, swept.entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_entropy is not None and not ctx.entropy_gradient:
            raise RuntimeError("the loss depends on the entropy, but its gradient was not asked for: entropy='grad'")
        direction, entropy_direction, *kept = ctx.saved_tensors
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = _combine(direction, grad_logprob, entropy_direction, grad_entropy, ctx.dtype)
        if ctx.needs_input_grad[1]:
            if grad_logprob is None:
                grad_logprob = torch.zeros_like(kept[-1])
            grad_weight = ctx.engine.weight_gradient(*kept, grad_logprob, grad_entropy)
        return grad_hidden, grad_weight, None, None, None, None


def _combine(
    direction: Tensor,
    grad_logprob: Tensor | None,
    entropy_direction: Tensor | None,
    grad_entropy: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """coefficient * direction, summed over the outputs that have a gradient; rounded once, to `dtype`."""
    if grad_logprob is None:
        grad_logprob = torch.zeros_like(direction[:, 0])
    combined = direction.new_empty(direction.shape, dtype=dtype)
    # On a CPU in pieces of 128 KiB: the product in fp32 is never as large as the result.
    step = len(direction) if direction.is_cuda else max(1, 2**15 // max(1, direction.shape[1]))
    for start in range(0, len(direction), max(1, step)):
        rows = slice(start, start + step)
        part = direction[rows] * grad_logprob[rows, None]
        if grad_entropy is not None and entropy_direction is not None:
            part.addcmul_(entropy_direction[rows], grad_entropy[rows, None])
        combined[rows] = part
    return combined
