"""The Triton kernels in the interpreter. Run by test_triton.py in a process of its own, with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mappa_kernels import (
    chosen,
    grouped_lora,
    grouped_lora_fused,
    linear_logprob,
    policy_loss,
    process_advantage,
)
from mappa_kernels.gpu import sweep
from tests.kernels.support import BUDGET, error, large_logits, problem, truth

TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _small_chunks():
    """Chunks of few tokens and vocabulary rows, so that small problems cross their borders."""
    before = sweep.TOKENS, sweep.VOCABULARY
    sweep.TOKENS, sweep.VOCABULARY = 16, 128
    yield
    sweep.TOKENS, sweep.VOCABULARY = before


def logprob_and_gradients(hidden: Tensor, weight: Tensor, targets: Tensor, run) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob, entropy = run(hidden, weight)
    (logprob @ torch.linspace(-1, 1, len(targets)).to(logprob) + entropy.sum()).backward()
    return [logprob.detach(), entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_logprob(dtype):
    hidden, weight, targets = problem(19, 40, 140, dtype)
    targets[-1] = 139
    temperature = torch.linspace(0.5, 2.0, 19)

    def ours(h: Tensor, w: Tensor):
        return linear_logprob(h, w, targets, temperature=temperature, entropy="grad", backend="triton")

    mine = logprob_and_gradients(hidden, weight, targets, ours)
    exact = logprob_and_gradients(
        hidden.double(), weight.double(), targets, lambda h, w: truth(h, w, targets, temperature.double())
    )
    assert (mine[0].double() - exact[0]).abs().max() <= 5e-6
    assert (mine[1].double() - exact[1]).abs().max() <= 5e-6
    # Numerators and results are each rounded to the input's type.
    for ours_, right in zip(mine[2:], exact[2:], strict=True):
        assert error(ours_, right) <= (torch.finfo(dtype).eps + 1e-6) * right.square().mean().sqrt().item()


def test_logprob_alone_and_a_frozen_head():
    hidden, weight, targets = problem(19, 40, 140)
    exact, _ = truth(hidden.double(), weight.double(), targets, 1.0)
    logprob, entropy = linear_logprob(hidden, weight, targets, backend="triton")
    assert entropy is None
    assert (logprob.double() - exact).abs().max() <= 5e-6
    hidden.requires_grad_()
    again, _ = linear_logprob(hidden, weight, targets, backend="triton")
    again.sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0
    assert chosen("linear_logprob") == "triton"


def test_a_row_has_the_same_bits_in_any_batch():
    hidden, weight, targets = problem(19, 40, 140, torch.bfloat16)

    def run(rows) -> list[Tensor]:
        states = hidden[rows].clone().requires_grad_()
        logprob, _ = linear_logprob(states, weight, targets[rows], backend="triton")
        logprob.sum().backward()
        return [logprob.detach(), states.grad]

    whole = run(slice(None))
    for rows in (slice(3, 4), torch.tensor([18, 0, 13]), slice(2, 19)):
        assert all(torch.equal(part, all_[rows]) for part, all_ in zip(run(rows), whole, strict=True))


@pytest.mark.parametrize("size", [2048.0, 2.0**20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_logits_large_and_close_together(size, temperature):
    hidden, weight, targets = large_logits(16, 300, size)

    def ours(h: Tensor, w: Tensor):
        return linear_logprob(h, w, targets, temperature=temperature, entropy="grad", backend="triton")

    mine = logprob_and_gradients(hidden, weight, targets, ours)
    exact, single = (
        logprob_and_gradients(hidden.to(t), weight.to(t), targets, lambda h, w: truth(h, w, targets, temperature))
        for t in (torch.float64, torch.float32)
    )
    for name, ours_, theirs, right in zip(("logprob", "entropy", "hidden", "weight"), mine, single, exact, strict=True):
        floor = 1e-6 * (1 + right.square().mean().sqrt().item())
        assert error(ours_, right) <= BUDGET * error(theirs, right) + floor, name


@pytest.mark.parametrize("margin", [8.0, 24.0])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("of", ["logprob", "entropy"])
def test_the_gradient_of_a_confident_model(dtype, margin, of):
    """Where the target is nearly certain the gradient is small: rounding its probability must not drown it."""
    _, weight, targets = problem(16, 64, 300, dtype, seed=3, spread=8.0)
    likely = weight[targets].double()
    hidden = (likely * margin / likely.square().sum(1, keepdim=True)).to(dtype)
    gradients = []
    for run, kind in ((linear_logprob, dtype), (None, torch.float64), (None, torch.float32)):
        states = hidden.to(kind, copy=True).requires_grad_()
        if run is None:
            results = truth(states, weight.to(kind), targets, 1.0)
        else:
            results = run(states, weight, targets, entropy="grad", backend="triton")
        results[of == "entropy"].sum().backward()
        gradients.append(states.grad)
    mine, exact, single = gradients
    # What rounding the numerators and the result to the input's type may cost.
    size = exact.square().mean().sqrt().item()
    assert error(mine, exact) <= 2 * error(single.to(dtype), exact) + 2 * torch.finfo(dtype).eps * size


def test_extreme_logits_and_edges():
    hidden, weight, targets = problem(5, 8, 70, spread=1e4)
    exact, _ = truth(hidden.double(), weight.double(), targets, 1.0)
    logprob, _ = linear_logprob(hidden, weight, targets, backend="triton")
    single, _ = truth(hidden, weight, targets, 1.0)
    assert error(logprob, exact) <= 1.5 * error(single, exact) + 1e-3
    for tokens, vocabulary in ((0, 5), (1, 1), (1, 129)):
        hidden, weight, targets = problem(tokens, 3, vocabulary)
        logprob, entropy = linear_logprob(hidden.requires_grad_(), weight, targets, entropy=True, backend="triton")
        logprob.sum().backward()
        exact, _ = truth(hidden.detach().double(), weight.double(), targets, 1.0)
        assert logprob.shape == entropy.shape == (tokens,)
        assert error(logprob.detach(), exact) <= 1e-6


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_advantage(gamma, beta):
    lengths = [3, 0, 700, 512, 1, 40]
    scores = torch.tensor([0.2, 0.5, 0.9, 0.1, torch.nan, 0.6])
    offsets, groups = torch.tensor([0, *lengths]).cumsum(0), torch.tensor([0, 1, 0, 1, 0, 1])
    kl = torch.randn(int(offsets[-1]), generator=torch.Generator().manual_seed(0)) * 0.1
    for whiten in (True, False):
        results = [
            process_advantage(
                scores, offsets, groups, kl=kl, beta=beta, gamma=gamma, whiten=whiten, n_groups=3, backend=backend
            )
            for backend in ("triton", "reference")
        ]
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["ppo", "reinforce", "cispo", "gspo"])
@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize("cap", [None, 1.1])
def test_policy_loss(kind, with_old, cap):
    generator = torch.Generator().manual_seed(0)
    logprob, noise, other, advantage, entropy = (torch.randn(1100, generator=generator) * 0.4 for _ in range(5))
    mask = torch.rand(1100, generator=generator) > 0.2
    results = []
    for backend in ("triton", "reference"):
        x = torch.where(mask, logprob, torch.nan).requires_grad_()
        loss, metrics = policy_loss(
            x,
            logprob + noise,
            advantage,
            kind=kind,
            old_logprob=logprob + other if with_old else None,
            tis_cap=cap,
            sequence_offsets=torch.tensor([0, 300, 300, 1100]),
            mask=mask,
            denominator=500.0,
            entropy=entropy if with_old else None,
            groups=torch.arange(1100) % 3,
            n_groups=4,
            backend=backend,
        )
        (2 * loss).backward()
        results.append({"loss": loss.detach(), "gradient": x.grad, **metrics})
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("x_type", TYPES, ids=str)
def test_grouped_lora(x_type):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.5).to(dtype).requires_grad_()

    x, base = leaf(150, 70, dtype=x_type), [leaf(150, 90, dtype=x_type), leaf(150, 30, dtype=x_type)]
    down = [[leaf(5, 70) for _ in range(3)] for _ in base]
    up = [[leaf(n, 5) for _ in range(3)] for n in (90, 30)]
    leaves = [x, *base, *(m for ms in (*down, *up) for m in ms)]
    results = []
    for backend in ("triton", "reference"):
        outputs = grouped_lora_fused(x, down, up, [0, 100, 100, 150], 0.5, base, backend=backend)
        grads = [torch.randn(o.shape, generator=generator.manual_seed(1)).to(o.dtype) for o in outputs]
        torch.autograd.backward(outputs, grads)
        results.append([*outputs, *(leaf_.grad for leaf_ in leaves)])
        for leaf_ in leaves:
            leaf_.grad = None
    for mine, theirs in zip(*results, strict=True):
        size = theirs.double().square().mean().sqrt().item()
        assert error(mine.detach(), theirs.detach().double()) <= 4 * torch.finfo(x_type).eps * (size + 1)


@pytest.mark.parametrize(("rank", "projections"), [(16, 3), (40, 3), (64, 2)])
def test_projections_that_share_a_tile_and_those_that_do_not(rank, projections):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 24, generator=generator).requires_grad_()
    base = [torch.randn(70, 20 + p, generator=generator) for p in range(projections)]
    down = [[torch.randn(rank, 24, generator=generator).requires_grad_() for _ in range(2)] for _ in base]
    up = [[torch.randn(b.shape[1], rank, generator=generator).requires_grad_() for _ in range(2)] for b in base]
    leaves = [x, *(m for ms in (*down, *up) for m in ms)]
    results = []
    for backend in ("triton", "reference"):
        outputs = grouped_lora_fused(x, down, up, [0, 30, 70], 0.5, base, backend=backend)
        total = sum((output * torch.linspace(-1, 1, output.shape[1])).sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    for mine, theirs in zip(*results, strict=True):
        size = theirs.double().square().mean().sqrt().item()
        assert error(mine.detach(), theirs.detach().double()) <= 1e-6 * (size + 1)


def test_the_sweep_can_be_tuned_and_computes_the_same():
    times = iter(range(1, 100))
    best = sweep.tune(40, torch.float32, torch.device("cpu"), measure=lambda run: run() and float(next(times)))
    assert set(best) == {"logits", "numerators", "weighted"}
    hidden, weight, targets = problem(19, 40, 140)
    exact, _ = truth(hidden.double(), weight.double(), targets, 1.0)
    logprob, _ = linear_logprob(hidden, weight, targets, backend="triton")
    assert (logprob.double() - exact).abs().max() <= 5e-6


def test_arguments_with_gaps_between_their_elements():
    hidden, weight, targets = problem(19, 40, 140)
    spread = torch.stack((targets, targets + 1), dim=1)[:, 0]
    whole, gaps = (linear_logprob(hidden, weight, y, backend="triton")[0] for y in (targets, spread))
    assert torch.equal(whole, gaps)
    scores, offsets = torch.rand(6, dtype=torch.float64), torch.tensor([0, 4, 9, 10])
    groups = torch.tensor([0, 7, 1, 7, 0, 7])
    results = [
        process_advantage(scores[::2], offsets, groups[::2], kl=torch.ones(10), beta=0.1, backend=backend)
        for backend in ("triton", "reference")
    ]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)


def test_grouped_lora_beyond_its_largest_rank_says_so():
    x, base = torch.randn(4, 8), torch.randn(4, 6)
    with pytest.raises(RuntimeError, match="ranks up to 64"):
        grouped_lora(x, [torch.randn(65, 8)], [torch.randn(6, 65)], [0, 4], 1.0, base, backend="triton")
    grouped_lora(x, [torch.randn(65, 8)], [torch.randn(6, 65)], [0, 4], 1.0, base)
    assert chosen("grouped_lora") == "cpu" or chosen("grouped_lora") == "reference"
