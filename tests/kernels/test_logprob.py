"""linear_logprob: values and gradients against fp64, within a multiple of what fp32 torch is off by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mappa_kernels
from mappa_kernels import linear_logprob, linear_logprob_reference
from tests.kernels.support import BACKENDS, BUDGET, error, large_logits, problem, truth

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(hidden: Tensor, weight: Tensor, targets: Tensor, run, *, trainable: bool) -> tuple[Tensor, ...]:
    """Log-prob, entropy and the gradients of a fixed random combination of them."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trainable)
    logprob, entropy = run(hidden, weight)
    generator = torch.Generator().manual_seed(7)
    by_logprob, by_entropy = (torch.randn(len(targets), generator=generator).to(logprob) for _ in range(2))
    (logprob @ by_logprob + entropy @ by_entropy).backward()
    return (logprob.detach(), entropy.detach(), hidden.grad, *([weight.grad] if trainable else []))


def all_three(hidden, weight, targets, backend, temperature=1.0, *, trainable=False):
    """(ours, fp32 torch rounded to the input's type, fp64 torch) as `gradients` gives them."""

    def ours(h: Tensor, w: Tensor):
        return linear_logprob(h, w, targets, temperature=temperature, entropy="grad", backend=backend)

    def naive(h: Tensor, w: Tensor):
        tau = temperature.to(h.dtype) if isinstance(temperature, Tensor) else temperature
        return truth(h, w, targets, tau)

    mine = gradients(hidden, weight, targets, ours, trainable=trainable)
    single = gradients(hidden.float(), weight.float(), targets, naive, trainable=trainable)
    exact = gradients(hidden.double(), weight.double(), targets, naive, trainable=trainable)
    return mine, [*single[:2], *(g.to(hidden.dtype) for g in single[2:])], exact


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_errors_stay_within_the_budget(backend, dtype):
    hidden, weight, targets = problem(192, 256, 9001, dtype)
    mine, single, exact = all_three(hidden, weight, targets, backend, trainable=True)
    for name, ours, theirs, right in zip(("logprob", "entropy", "hidden", "weight"), mine, single, exact, strict=True):
        assert error(ours, right) <= BUDGET * error(theirs, right), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probs_of_bf16_inputs_are_exact_to_5e_6(backend):
    hidden, weight, targets = problem(256, 1024, 20011, torch.bfloat16)
    logprob, _ = linear_logprob(hidden, weight, targets, backend=backend)
    exact, _ = truth(hidden.double(), weight.double(), targets, 1.0)
    assert (logprob.double() - exact).abs().max().item() <= 5e-6


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("path", ["float32", "emulated"])
def test_every_instruction_set_and_both_bf16_paths(core, instruction_set, path):
    if instruction_set not in core.instruction_sets():
        pytest.skip(f"this machine has no {instruction_set}")
    core.select_instruction_set(instruction_set)
    core.set_bfloat16_path(path)
    hidden, weight, targets = problem(37, 71, 1003, torch.bfloat16)
    mine, single, exact = all_three(hidden, weight, targets, "cpu", 0.7, trainable=True)
    # Probabilities are rounded to bf16 on the way into the second product of the brgemm path.
    budget = BUDGET if path == "float32" else 2 * BUDGET
    for ours, theirs, right in zip(mine, single, exact, strict=True):
        assert error(ours, right) <= budget * error(theirs, right) + 1e-7


@given(
    tokens=st.integers(0, 70),
    width=st.integers(1, 40),
    vocabulary=st.sampled_from([1, 2, 5, 167, 168, 169, 336, 511, 512, 513, 1030]),
    dtype=st.sampled_from(TYPES),
    backend=st.sampled_from(BACKENDS),
    trainable=st.booleans(),
    vector=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_layout(tokens, width, vocabulary, dtype, backend, trainable, vector, seed):
    hidden, weight, targets = problem(tokens, width, vocabulary, dtype, seed=seed)
    if tokens:
        targets[-1] = vocabulary - 1  # in the last, partial tile
    temperature = 0.5 + torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) if vector else 0.8
    mine, single, exact = all_three(hidden, weight, targets, backend, temperature, trainable=trainable)
    assert mine[0].dtype == mine[1].dtype == torch.float32
    for ours, theirs, right in zip(mine, single, exact, strict=True):
        assert ours.shape == right.shape
        # Few values, where fp32 torch may be right by luck: a rounding step of the terms they are sums of is added.
        floor = (
            4 * torch.finfo(ours.dtype).eps * (1 + weight.abs().max().item()) * (1 + hidden.abs().sum().item() ** 0.5)
        )
        assert error(ours, right) <= BUDGET * error(theirs, right) + floor + 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1e4, 1e-4])
def test_very_large_and_very_small_logits(backend, spread):
    hidden, weight, targets = problem(64, 48, 1000, spread=spread)
    targets[::2] = (hidden @ weight.T).argmax(1)[::2]
    mine, single, exact = all_three(hidden, weight, targets, backend)
    for ours, theirs, right in zip(mine, single, exact, strict=True):
        assert torch.isfinite(ours).all()
        assert error(ours, right) <= BUDGET * error(theirs, right) + 1e-7


def check_large_logits(size: float, temperature: float, backend: str) -> None:
    hidden, weight, targets = large_logits(16, 300, size)
    mine, single, exact = all_three(hidden, weight, targets, backend, temperature, trainable=True)
    for name, ours, theirs, right in zip(("logprob", "entropy", "hidden", "weight"), mine, single, exact, strict=True):
        # Where torch is exact by luck, fp32's rounding of the result and of the terms it is a sum of is allowed.
        floor = 1e-6 * (1 + right.square().mean().sqrt().item())
        assert error(ours, right) <= BUDGET * error(theirs, right) + floor, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2048.0, 2.0**20])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_logits_large_and_close_together(size, temperature, backend):
    check_large_logits(size, temperature, backend)


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
def test_large_logits_on_every_instruction_set(core, instruction_set):
    if instruction_set not in core.instruction_sets():
        pytest.skip(f"this machine has no {instruction_set}")
    core.select_instruction_set(instruction_set)
    check_large_logits(2048.0, 0.7, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_that_are_ruled_out(backend):
    """Rows of the weight that make logits near the lowest float: probability 0, and no share of the gradient."""
    hidden, weight, targets = problem(40, 16, 700)
    hidden[:, 0] = 1.0
    weight[100:500, 0] = -3e38
    targets = targets % 100
    mine, _, _ = all_three(hidden, weight, targets, backend)
    kept = torch.cat((weight[:100], weight[500:]))
    _, _, exact = all_three(hidden, kept, targets, backend)
    for ours, right in zip(mine, exact, strict=True):
        assert error(ours, right) <= 1e-6 * (1 + right.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_in_one_row_stays_in_that_row(backend):
    hidden, weight, targets = problem(40, 16, 700)
    clean, clean_entropy = linear_logprob(hidden, weight, targets, entropy=True, backend=backend)
    hidden[5, 3] = torch.nan
    logprob, entropy = linear_logprob(hidden, weight, targets, entropy=True, backend=backend)
    others = torch.arange(40) != 5
    assert logprob[5].isnan()
    assert entropy[5].isnan()
    torch.testing.assert_close(logprob[others], clean[others])
    torch.testing.assert_close(entropy[others], clean_entropy[others])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_strides_do_not_matter(backend, dtype):
    hidden, weight, targets = problem(50, 30, 333, dtype)
    contiguous = linear_logprob(hidden, weight, targets, entropy=True, backend=backend)
    views = [hidden.T.contiguous().T, torch.cat((hidden, hidden), 1)[:, 30:], torch.stack((hidden, hidden), 1)[:, 1]]
    for view in views:
        assert not view.is_contiguous()
        other = linear_logprob(view, weight.T.contiguous().T, targets, entropy=True, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(contiguous, other, strict=True))


@pytest.mark.parametrize("width", [30, 31])
def test_strides_do_not_matter_to_bf16_instructions(core, width):
    core.set_bfloat16_path("emulated")
    hidden, weight, targets = problem(50, width, 333, torch.bfloat16)

    def ours(h: Tensor, w: Tensor):
        return linear_logprob(h, w, targets, entropy="grad", backend="cpu")

    strided = (hidden.T.contiguous().T, weight.T.contiguous().T)
    both = (gradients(*one, targets, ours, trainable=True) for one in ((hidden, weight), strided))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("integer", [torch.int64, torch.int32], ids=str)
def test_targets_with_gaps_and_of_any_integer_type(backend, integer):
    hidden, weight, targets = problem(50, 30, 333)
    hidden.requires_grad_()
    gaps = torch.stack((targets, targets - 1), dim=1)[:, 0].to(integer)
    temperature = torch.linspace(0.5, 2.0, 100)
    results = []
    for y, tau in ((targets, temperature[::2].clone()), (gaps, temperature[::2])):
        logprob, _ = linear_logprob(hidden, weight, y, temperature=tau, backend=backend)
        results.append((logprob.detach(), *torch.autograd.grad(logprob.sum(), hidden)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trainable", [False, True])
def test_the_weight_gets_a_gradient_only_where_it_asks(backend, trainable):
    hidden, weight, targets = problem(20, 8, 50)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    linear_logprob(hidden, weight, targets, backend=backend)[0].sum().backward()
    assert (weight.grad is not None) == trainable
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trainable_head_over_frozen_states(backend):
    hidden, weight, targets = problem(20, 8, 50)
    weight.requires_grad_()
    linear_logprob(hidden, weight, targets, backend=backend)[0].sum().backward()
    exact = weight.detach().double().requires_grad_()
    truth(hidden.double(), exact, targets, 1.0)[0].sum().backward()
    assert error(weight.grad, exact.grad) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_saved_without_a_gradient(backend):
    hidden, weight, targets = problem(20, 8, 50)
    assert linear_logprob(hidden, weight, targets, backend=backend)[0].grad_fn is None
    with torch.no_grad():
        logprob, entropy = linear_logprob(hidden.requires_grad_(), weight, targets, backend=backend)
    assert logprob.grad_fn is None
    assert entropy is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entropy_gradient_that_was_not_asked_for_is_an_error(backend):
    hidden, weight, targets = problem(20, 8, 50)
    logprob, entropy = linear_logprob(hidden.requires_grad_(), weight, targets, entropy=True, backend=backend)
    with pytest.raises(RuntimeError, match="entropy='grad'"):
        (logprob + 0.01 * entropy).sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_backward_for_any_loss(backend):
    """The saved direction serves losses that are only known after the sweep: a sequence ratio, say."""
    hidden, weight, targets = problem(30, 16, 200)

    def loss(logprob: Tensor) -> Tensor:
        return (logprob[:10].mean().exp() * 2 - logprob[10:].mean().exp()).square()

    mine = hidden.clone().requires_grad_()
    loss(linear_logprob(mine, weight, targets, backend=backend)[0]).backward()
    exact = hidden.double().requires_grad_()
    loss(truth(exact, weight.double(), targets, 1.0)[0]).backward()
    assert error(mine.grad, exact.grad) <= 1e-5 * exact.grad.abs().max().item()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("mode", [False, "grad"])
def test_gradcheck_of_the_reference(trainable, mode):
    hidden, weight, targets = problem(6, 5, 11, torch.float64)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    temperature = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)

    def run(h: Tensor, w: Tensor):
        outputs = linear_logprob_reference(h, w, targets, temperature=temperature, entropy=mode)
        return tuple(output for output in outputs if output is not None)

    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_fp64_runs_on_the_reference():
    hidden, weight, targets = problem(6, 5, 11, torch.float64)
    assert linear_logprob(hidden, weight, targets)[0].dtype == torch.float64
    assert mappa_kernels.chosen("linear_logprob") == "reference"
