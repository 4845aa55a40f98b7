"""What the kernel tests share: truth in fp64, error budgets, and the back-ends that can run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import mappa_kernels

BACKENDS = mappa_kernels.available("linear_logprob")
"""Back-ends of this machine: the C++ kernels where they are built, the reference always."""

BUDGET = 1.5
"""Largest error against fp64, as a multiple of the error of fp32-accumulating torch."""


def truth(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy by definition, over the whole logits, in the type of the arguments."""
    tau = temperature[:, None] if isinstance(temperature, Tensor) else temperature
    log_p = (hidden @ weight.T / tau).log_softmax(-1)
    finite = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    return log_p.gather(1, targets.long()[:, None]).squeeze(1), -(log_p.exp() * finite).sum(-1)


def problem(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32, *, seed: int = 0, spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets whose logits have standard deviation `spread`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * spread / max(width, 1) ** 0.5
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def large_logits(tokens: int, vocabulary: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets whose logits are whole numbers within 3 of `size`: exact in fp32."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-3, 4, (vocabulary,), generator=generator).float()
    hidden = torch.tensor([size, 1.0]).expand(tokens, 2).contiguous()
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, torch.stack((torch.ones(vocabulary), words), 1), targets


def error(values: Tensor, exact: Tensor) -> float:
    """Root mean square distance."""
    return (values.double() - exact).square().mean().sqrt().item() if values.numel() else 0.0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
