"""The bits of a row depend on that row alone: not on the batch, its order, its packing, or the number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mappa_kernels import grouped_lora, linear_logprob
from tests.kernels.support import problem, threads

TYPES = [torch.float32, torch.bfloat16]


def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob, entropy and grad-hidden of `logprob + entropy`, on the C++ back-end."""
    hidden = hidden.clone().requires_grad_()
    logprob, entropy = linear_logprob(hidden, weight, targets, temperature=0.9, entropy="grad", backend="cpu")
    (logprob + entropy).sum().backward()
    return logprob.detach(), entropy.detach(), hidden.grad


def equal(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def rows_of(results: tuple[Tensor, ...], rows) -> tuple[Tensor, ...]:
    return tuple(result[rows] for result in results)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def sets(request, core):
    """Each instruction set in turn."""
    if request.param not in core.instruction_sets():
        pytest.skip(f"this machine has no {request.param}")
    core.select_instruction_set(request.param)
    return core


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("path", ["float32", "emulated"])
def test_alone_permuted_in_another_batch_and_in_chunks(sets, dtype, path):
    sets.set_bfloat16_path(path)
    hidden, weight, targets = problem(150, 70, 1003, dtype)
    whole = run(hidden, weight, targets)
    for row in (0, 31, 32, 149):
        assert equal(run(hidden[row : row + 1], weight, targets[row : row + 1]), rows_of(whole, slice(row, row + 1)))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    assert equal(run(hidden[order], weight, targets[order]), rows_of(whole, order))
    some = order[:77]
    assert equal(run(hidden[some], weight, targets[some]), rows_of(whole, some))
    for size in (1, 13, 64, 149):
        chunks = [run(h, weight, y) for h, y in zip(hidden.split(size), targets.split(size), strict=True)]
        assert equal(tuple(map(torch.cat, zip(*chunks, strict=True))), whole)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_thread_or_two_and_run_to_run(sets, dtype):
    hidden, weight, targets = problem(150, 70, 1003, dtype)
    results = []
    for count in (1, 2, 2, 1):
        with threads(count):
            results.append(run(hidden, weight, targets))
    assert all(equal(results[0], other) for other in results[1:])


def test_the_log_prob_alone_has_the_same_bits_as_with_a_gradient(core):
    hidden, weight, targets = problem(50, 70, 1003)
    with torch.no_grad():
        without, _ = linear_logprob(hidden, weight, targets, temperature=0.9, backend="cpu")
    assert torch.equal(without, run(hidden, weight, targets)[0])


def test_the_weight_gradient_does_not_depend_on_threads(core):
    hidden, weight, targets = problem(150, 70, 1003)
    weight.requires_grad_()
    gradients = []
    for count in (1, 2):
        with threads(count):
            linear_logprob(hidden, weight, targets, backend="cpu")[0].sum().backward()
        gradients.append(weight.grad)
        weight.grad = None
    assert torch.equal(*gradients)


def test_a_token_of_grouped_lora_does_not_see_the_others(sets):
    generator = torch.Generator().manual_seed(0)
    x, base, grad = (torch.randn(130, n, generator=generator) for n in (40, 70, 70))
    down = [torch.randn(16, 40, generator=generator) for _ in range(2)]
    up = [torch.randn(70, 16, generator=generator) for _ in range(2)]

    def both(rows: slice, offsets: list[int]) -> tuple[Tensor, Tensor]:
        states = x[rows].clone().requires_grad_()
        out = grouped_lora(states, down, up, offsets, 0.5, base[rows], backend="cpu")
        out.backward(grad[rows])
        return out.detach(), states.grad

    whole = both(slice(0, 130), [0, 100, 130])
    assert equal(both(slice(99, 101), [0, 1, 2]), rows_of(whole, slice(99, 101)))
    assert equal(both(slice(60, 130), [0, 40, 70]), rows_of(whole, slice(60, 130)))


def test_lora_gradients_do_not_depend_on_threads(core):
    generator = torch.Generator().manual_seed(0)
    x, base = torch.randn(3000, 40, generator=generator), torch.randn(3000, 70, generator=generator)
    results = []
    for count in (1, 2):
        down = [torch.randn(16, 40, generator=generator.manual_seed(1)).requires_grad_() for _ in range(3)]
        up = [torch.randn(70, 16, generator=generator.manual_seed(2)).requires_grad_() for _ in range(3)]
        with threads(count):
            grouped_lora(x, down, up, [0, 1500, 1500, 3000], 0.5, base, backend="cpu").square().sum().backward()
        results.append(tuple(matrix.grad for matrix in (*down, *up)))
    assert equal(*results)
