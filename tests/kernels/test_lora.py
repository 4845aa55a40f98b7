"""grouped_lora: against one role at a time in fp64, dense gradients for every role, and its fused form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mappa_kernels
from mappa_kernels import grouped_lora, grouped_lora_fused, grouped_lora_reference
from tests.kernels.support import BUDGET, error

BACKENDS = mappa_kernels.available("grouped_lora")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


class Case:
    """x, base outputs and adapters of `roles` roles, with gradients, in any types."""

    def __init__(self, offsets, width, outs, rank, *, x_type=torch.float32, type_=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def leaf(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()

        self.offsets, self.roles = offsets, len(offsets) - 1
        self.x = leaf(offsets[-1], width, dtype=x_type)
        self.base = [leaf(offsets[-1], out, dtype=x_type) for out in outs]
        self.down = [[leaf(rank, width, dtype=type_, scale=width**-0.5) for _ in range(self.roles)] for _ in outs]
        self.up = [[leaf(out, rank, dtype=type_) for _ in range(self.roles)] for out in outs]
        self.grads = [torch.randn(offsets[-1], out, generator=generator).to(x_type) for out in outs]

    def leaves(self) -> list[Tensor]:
        return [self.x, *self.base, *(m for ms in (*self.down, *self.up) for m in ms)]

    def run(self, backend: str) -> list[Tensor]:
        """Outputs, then the gradients of all leaves."""
        if len(self.base) == 1:
            outputs = (
                grouped_lora(self.x, self.down[0], self.up[0], self.offsets, 0.5, self.base[0], backend=backend),
            )
        else:
            outputs = grouped_lora_fused(self.x, self.down, self.up, self.offsets, 0.5, self.base, backend=backend)
        return self._gradients(outputs)

    def as_defined(self, dtype: torch.dtype, power: int = 1) -> list[Tensor]:
        """The same by the formula, computed in `dtype`. All is a sum of products: with everything given squared, it is
        (at least) the sum of their squares."""
        cast = [leaf.detach().to(dtype).pow(power).requires_grad_() for leaf in self.leaves()]
        count = len(self.base)
        x, base, flat = cast[0], cast[1 : 1 + count], cast[1 + count :]
        outputs = []
        for p in range(count):
            down = flat[p * self.roles : (p + 1) * self.roles]
            up = flat[(count + p) * self.roles : (count + p + 1) * self.roles]
            parts = [
                x[first:stop] @ a.T @ b.T
                for a, b, first, stop in zip(down, up, self.offsets[:-1], self.offsets[1:], strict=True)
            ]
            outputs.append(base[p] + 0.5 * torch.cat(parts))
        loss = sum((out * grad.to(dtype).pow(power)).sum() for out, grad in zip(outputs, self.grads, strict=True))
        return [*outputs, *torch.autograd.grad(loss, cast)]

    def _gradients(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        torch.autograd.backward(outputs, self.grads)
        gradients = [leaf.grad for leaf in self.leaves()]
        for leaf in self.leaves():
            leaf.grad = None
        return [*(out.detach() for out in outputs), *gradients]


@pytest.mark.parametrize("outs", [[5, 0], [0, 5], [0]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_projection_without_columns(outs, backend):
    case = Case([0, 40, 70], 12, outs, 3)
    for mine, exact in zip(case.run(backend), case.as_defined(torch.float64), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=4),
    width=st.integers(1, 70),
    outs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rank=st.integers(1, 64),
    x_type=st.sampled_from(TYPES),
    same_type=st.booleans(),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 100),
)
def test_any_shape_is_as_defined(lengths, width, outs, rank, x_type, same_type, backend, seed):
    offsets = torch.tensor([0, *lengths]).cumsum(0).tolist()
    type_ = x_type if same_type else torch.float32
    case = Case(offsets, width, outs, rank, x_type=x_type, type_=type_, seed=seed)
    longest_sum = max(offsets[-1], width, rank, *outs)
    allowed = 2 * torch.finfo(x_type).eps + torch.finfo(torch.float32).eps * longest_sum**0.5
    checked = zip(case.run(backend), case.as_defined(torch.float64), case.as_defined(torch.float64, 2), strict=True)
    for ours, exact, terms in checked:
        size, rounded = (x.mean().sqrt().item() if x.numel() else 0.0 for x in (exact.square(), terms))
        # Where the terms of a sum cancel, what they were rounded by remains, and grows with their number.
        assert error(ours, exact) <= allowed * (size + rounded) + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_errors_stay_within_the_budget(backend):
    case = Case([0, 300, 300, 700], 256, [384, 128], 16)
    checked = zip(case.run(backend), case.as_defined(torch.float32), case.as_defined(torch.float64), strict=True)
    for ours, theirs, exact in checked:
        assert error(ours, exact) <= BUDGET * error(theirs, exact) + 1e-9


@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "portable"])
def test_every_instruction_set(core, instruction_set):
    if instruction_set not in core.instruction_sets():
        pytest.skip(f"this machine has no {instruction_set}")
    core.select_instruction_set(instruction_set)
    case = Case([0, 61, 61, 200], 70, [45, 64, 33], 24, x_type=torch.bfloat16)
    for ours, exact in zip(case.run("cpu"), case.as_defined(torch.float64), strict=True):
        assert error(ours, exact) <= 0.01 * exact.square().mean().sqrt().item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_roles_without_tokens_get_dense_zeros(backend):
    case = Case([0, 0, 40, 40], 16, [24], 4)
    gradients = case.run(backend)[3:]
    for role in (0, 2):
        assert gradients[role].shape == case.down[0][role].shape
        assert (gradients[role] == 0).all()
        assert (gradients[3 + role] == 0).all()
    assert gradients[1].abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_at_all(backend):
    outputs = Case([0, 0, 0], 16, [24], 4).run(backend)
    assert outputs[0].shape == (0, 24)
    assert all((gradient == 0).all() for gradient in outputs[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_equals_one_projection_at_a_time(backend):
    case = Case([0, 50, 90], 32, [40, 24, 24], 8)
    fused = case.run(backend)[:3]
    for p in range(3):
        alone = grouped_lora(case.x, case.down[p], case.up[p], case.offsets, 0.5, case.base[p], backend=backend)
        torch.testing.assert_close(fused[p], alone.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_base_out_is_left_alone_and_offsets_may_be_a_tensor(backend):
    case = Case([0, 50, 90], 32, [40], 8)
    before = case.base[0].detach().clone()
    as_list = grouped_lora(case.x, case.down[0], case.up[0], [0, 50, 90], 0.5, case.base[0], backend=backend)
    offsets = torch.tensor([0, 50, 90], dtype=torch.int32)
    as_tensor = grouped_lora(case.x, case.down[0], case.up[0], offsets, 0.5, case.base[0], backend=backend)
    assert torch.equal(case.base[0].detach(), before)
    assert torch.equal(as_list, as_tensor)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_x_and_expanded_gradients(backend):
    case = Case([0, 50, 90], 32, [40], 8)
    straight = grouped_lora(case.x, case.down[0], case.up[0], case.offsets, 0.5, case.base[0], backend=backend)
    turned = case.x.T.contiguous().T
    again = grouped_lora(turned, case.down[0], case.up[0], case.offsets, 0.5, case.base[0], backend=backend)
    torch.testing.assert_close(straight, again, rtol=1e-6, atol=1e-6)
    again.sum().backward()  # its gradient is one number, expanded
    torch.testing.assert_close(case.base[0].grad, torch.ones(90, 40))


def test_gradcheck_of_the_reference():
    case = Case([0, 4, 4, 9], 5, [6], 3, x_type=torch.float64, type_=torch.float64)

    def run(x: Tensor, base: Tensor, *flat: Tensor) -> Tensor:
        return grouped_lora_reference(x, flat[:3], flat[3:], case.offsets, 0.5, base)

    assert torch.autograd.gradcheck(run, tuple(case.leaves()))
