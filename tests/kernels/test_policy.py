"""policy_loss: each kind against its formula, its gradient by hand, and the ways a batch may be cut."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mappa_kernels import policy_loss, policy_loss_reference

KINDS = ["ppo", "reinforce", "cispo", "gspo"]


def batch(tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprob = -torch.rand(tokens, generator=generator, dtype=torch.float64) * 3
    noise = torch.randn(2, tokens, generator=generator, dtype=torch.float64) * 0.3
    made = {
        "logprob": logprob,
        "behaviour_logprob": logprob + noise[0],
        "advantage": torch.randn(tokens, generator=generator, dtype=torch.float64),
        "old_logprob": logprob + noise[1],
    }
    return {name: value.to(dtype) for name, value in made.items()}


def by_formula(data: dict[str, Tensor], kind: str, low: float, high: float, cap: float | None, offsets: list[int]):
    """Loss and its gradient in logprob, one token at a time."""
    x, behaviour, advantage = (data[name].tolist() for name in ("logprob", "behaviour_logprob", "advantage"))
    old = data["old_logprob"].tolist() if "old_logprob" in data else None
    learner = old if old is not None else x
    anchor = old if old is not None else (behaviour if cap is None else x)
    log_ratios = [a - b for a, b in zip(x, anchor, strict=True)]
    if kind == "gspo":
        for first, stop in itertools.pairwise(offsets):
            if stop > first:
                log_ratios[first:stop] = [sum(log_ratios[first:stop]) / (stop - first)] * (stop - first)
    total, gradient = 0.0, []
    for t, value in enumerate(log_ratios):
        weight = 1.0 if cap is None else min(math.exp(learner[t] - behaviour[t]), cap)
        ratio, a = math.exp(value), advantage[t]
        limited = min(max(ratio, 1 - low), 1 + high)
        if kind == "reinforce":
            term, slope = x[t] * a, a
        elif kind == "cispo":
            term, slope = limited * x[t] * a, limited * a
        else:
            term = min(ratio * a, limited * a)
            slope = ratio * a if ratio * a <= limited * a else 0.0
        total -= weight * term
        gradient.append(-weight * slope)
    return total, gradient


@given(
    kind=st.sampled_from(KINDS),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    low=st.sampled_from([0.0, 0.2, 1.0]),
    high=st.sampled_from([0.0, 0.28, 5.0]),
    cap=st.sampled_from([None, 1.0, 2.0]),
    with_old=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_kind_is_its_formula(kind, cuts, low, high, cap, with_old, seed):
    offsets = [0, *sorted(cuts), 30]
    data = batch(30, seed=seed, dtype=torch.float64)
    if not with_old:
        del data["old_logprob"]
    data["logprob"].requires_grad_()
    loss, metrics = policy_loss(
        **data, kind=kind, clip_low=low, clip_high=high, tis_cap=cap, sequence_offsets=torch.tensor(offsets)
    )
    loss.backward()
    expected, gradient = by_formula(data, kind, low, high, cap, offsets)
    assert loss.item() == pytest.approx(expected / 30, abs=1e-9)
    assert data["logprob"].grad.tolist() == pytest.approx([g / 30 for g in gradient], abs=1e-9)
    assert int(metrics["tokens"]) == 30


@pytest.mark.parametrize("kind", ["reinforce", "cispo"])
def test_gradcheck_of_the_kinds_whose_value_is_smooth(kind):
    data = batch(12, dtype=torch.float64)
    anchored = {**data, "logprob": data["logprob"].requires_grad_()}
    if kind == "cispo":
        # The clipped ratio is held fixed: the loss is not the integral of its gradient unless every ratio is clipped.
        anchored["old_logprob"] = data["logprob"].detach() - 1.0
    assert torch.autograd.gradcheck(
        lambda x: policy_loss_reference(**{**anchored, "logprob": x}, kind=kind).loss, (anchored["logprob"],)
    )


def test_ppo_gradcheck_away_from_the_edges():
    data = batch(40, dtype=torch.float64)
    x = data.pop("logprob").requires_grad_()
    assert torch.autograd.gradcheck(lambda logprob: policy_loss_reference(logprob, **data, kind="ppo").loss, (x,))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_never_read(kind):
    data, offsets = batch(20), torch.tensor([0, 7, 20])
    mask = torch.ones(20, dtype=torch.bool)
    mask[[0, 6, 12, 13]] = False
    spoiled = {name: torch.where(mask, value, torch.nan) for name, value in data.items()}
    spoiled["logprob"].requires_grad_()
    groups = torch.tensor([0] * 10 + [1] * 10)
    options = {"kind": kind, "tis_cap": 1.5}
    loss, metrics = policy_loss(**spoiled, **options, sequence_offsets=offsets, mask=mask, groups=groups)
    loss.backward()
    kept = {name: value[mask] for name, value in data.items()}
    expected, same = policy_loss(**kept, **options, sequence_offsets=torch.tensor([0, 5, 16]), groups=groups[mask])
    torch.testing.assert_close(loss, expected)
    for name, values in metrics.items():
        torch.testing.assert_close(values, same[name])
    assert (spoiled["logprob"].grad[~mask] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_cut_into_micro_batches_with_one_denominator_it_adds_up(kind):
    data, cuts = batch(48, dtype=torch.float64), [0, 16, 20, 48]

    def gradient(parts: list[slice]) -> tuple[float, Tensor]:
        x = data["logprob"].clone().requires_grad_()
        total = 0.0
        for part in parts:
            offsets = torch.tensor([c - part.start for c in cuts if part.start <= c <= part.stop])
            rest = {name: value[part] for name, value in data.items() if name != "logprob"}
            loss = policy_loss(x[part], **rest, kind=kind, sequence_offsets=offsets, denominator=48.0).loss
            loss.backward()
            total += loss.item()
        return total, x.grad

    whole, by_whole = gradient([slice(0, 48)])
    parts, by_parts = gradient([slice(0, 20), slice(20, 48)])
    assert parts == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(by_parts, by_whole)


def test_the_denominator_may_be_a_tensor_of_one_number_in_any_shape():
    data = batch(10)
    losses = [policy_loss(**data, denominator=d).loss for d in (8, torch.tensor(8), torch.tensor([8.0]))]
    assert all(loss.shape == () and torch.equal(loss, losses[0]) for loss in losses)


def test_metrics_by_hand():
    zero = torch.zeros(4)
    x = torch.tensor([0.0, 0.5, -0.5, 0.1])
    advantage = torch.tensor([1.0, 1.0, -1.0, 1.0])
    metrics = policy_loss(x, zero, advantage, groups=torch.tensor([0, 0, 1, 1]), n_groups=3).metrics
    torch.testing.assert_close(
        metrics["ratio"], torch.tensor([(1 + math.exp(0.5)) / 2, (math.exp(-0.5) + math.exp(0.1)) / 2, 0.0])
    )
    assert metrics["clip_fraction"].tolist() == [0.5, 0.5, 0.0]
    assert metrics["tokens"].tolist() == [2, 2, 0]
    k3 = [math.exp(v) - 1 - v for v in x.tolist()]
    torch.testing.assert_close(metrics["kl"], torch.tensor([(k3[0] + k3[1]) / 2, (k3[2] + k3[3]) / 2, 0.0]))
    torch.testing.assert_close(metrics["entropy"], torch.tensor([-0.25, 0.2, 0.0]))


def test_truncated_importance_sampling_by_hand():
    """Two tokens the learner finds 3x and 0.5x as likely as the sampler did, capped at 2."""
    behaviour = torch.tensor([-3.0, -1.0])
    learner = (behaviour + torch.tensor([3.0, 0.5]).log()).requires_grad_()
    loss, metrics = policy_loss(learner, behaviour, torch.ones(2), tis_cap=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(-(2.0 + 0.5) / 2)
    assert learner.grad.tolist() == pytest.approx([-1.0, -0.25])
    assert metrics["truncated"].item() == 0.5


def test_given_entropy_is_what_is_reported():
    data = batch(10)
    given_entropy = torch.linspace(0.1, 2.0, 10)
    metrics = policy_loss(**data, entropy=given_entropy).metrics
    torch.testing.assert_close(metrics["entropy"], given_entropy.mean())
    assert not any(value.requires_grad for value in metrics.values())


def test_far_away_policies_stay_finite():
    x = torch.tensor([0.0, -200.0]).requires_grad_()
    loss = policy_loss(x, torch.tensor([-200.0, 0.0]), torch.tensor([-1.0, 1.0])).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(kind):
    nothing = torch.zeros(0, requires_grad=True)
    loss, metrics = policy_loss(
        nothing, nothing.detach(), nothing.detach(), kind=kind, sequence_offsets=torch.tensor([0])
    )
    loss.backward()
    assert loss.item() == 0.0
    assert all(value.item() == 0 for value in metrics.values())
