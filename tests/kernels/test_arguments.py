"""Wrong arguments: a ValueError that begins with the argument's name, never a crash, never garbage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mappa_kernels
from mappa_kernels import grouped_lora, linear_logprob, policy_loss, process_advantage

HIDDEN, WEIGHT, TARGETS = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([0, 6, 2, 3])
BACKENDS = mappa_kernels.available("linear_logprob")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", {"hidden": torch.randn(4)}),
        ("hidden", {"hidden": torch.randn(4, 0), "weight": torch.randn(7, 0)}),
        ("hidden", {"hidden": HIDDEN.long()}),
        ("hidden", {"hidden": [[1.0]]}),
        ("hidden", {"hidden": HIDDEN.to_sparse()}),
        ("weight", {"weight": torch.randn(7, 5)}),
        ("weight", {"weight": WEIGHT.bfloat16()}),
        ("weight", {"weight": WEIGHT.to("meta")}),
        ("weight", {"weight": torch.randn(0, 3)}),
        ("targets", {"targets": TARGETS[:3]}),
        ("targets", {"targets": TARGETS.float()}),
        ("targets", {"targets": torch.tensor([0, 7, 2, 3])}),
        ("targets", {"targets": torch.tensor([0, -100, 2, 3])}),
        ("targets", {"targets": TARGETS[:, None]}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": -1.0}),
        ("temperature", {"temperature": float("nan")}),
        ("temperature", {"temperature": torch.ones(3)}),
        ("temperature", {"temperature": torch.tensor([1.0, 1.0, 0.0, 1.0])}),
        ("temperature", {"temperature": torch.tensor([1.0, float("nan"), 1.0, 1.0])}),
        ("temperature", {"temperature": torch.ones(4, requires_grad=True)}),
        ("temperature", {"temperature": torch.ones((), requires_grad=True)}),
        ("temperature", {"temperature": "1.0"}),
        ("temperature", {"temperature": None}),
        ("temperature", {"temperature": 1e-40}),
        ("temperature", {"temperature": 1e40}),
        ("temperature", {"temperature": torch.full((4,), 1e-39)}),
        ("temperature", {"temperature": torch.full((4,), 1e-60, dtype=torch.float64)}),
        ("temperature", {"temperature": torch.tensor([1.0, 1e-40, 1.0, 1.0])}),
        ("temperature", {"temperature": torch.tensor(1j)}),
        ("temperature", {"temperature": torch.ones((), device="meta")}),
        ("entropy", {"entropy": "yes"}),
        ("backend", {"backend": "cuda"}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_logprob(name: str, change: dict[str, Any], backend: str):
    arguments = {"hidden": HIDDEN, "weight": WEIGHT, "targets": TARGETS, "backend": backend, **change}
    with pytest.raises(ValueError, match=f"^{name}"):
        linear_logprob(**arguments)


SCORES, OFFSETS, GROUPS = torch.tensor([0.1, 0.2]), torch.tensor([0, 2, 5]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores", {"scores": SCORES[:, None]}),
        ("scores", {"scores": SCORES.long()}),
        ("scores", {"scores": torch.tensor([0.1, float("inf")])}),
        ("scores", {"scores": torch.tensor([float("nan"), float("-inf")])}),
        ("action_offsets", {"action_offsets": OFFSETS[:2]}),
        ("action_offsets", {"action_offsets": OFFSETS.float()}),
        ("action_offsets", {"action_offsets": OFFSETS + 1}),
        ("action_offsets", {"action_offsets": torch.tensor([0, 6, 5])}),
        ("action_offsets", {"kl": torch.zeros(6)}),
        ("groups", {"groups": GROUPS[:1]}),
        ("groups", {"groups": GROUPS.float()}),
        ("groups", {"groups": torch.tensor([0, -1])}),
        ("groups", {"groups": torch.tensor([0, 2]), "n_groups": 2}),
        ("n_groups", {"n_groups": -1}),
        ("n_groups", {"n_groups": 2.0}),
        ("n_groups", {"n_groups": "2"}),
        ("n_groups", {"n_groups": 2**70}),
        ("beta", {"beta": None}),
        ("beta", {"beta": "0.1"}),
        ("beta", {"beta": float("inf")}),
        ("gamma", {"gamma": None}),
        ("kl", {"kl": torch.tensor([0.0, float("nan"), 0.0, 0.0, 0.0])}),
        ("kl", {"kl": torch.full((5,), 1e200, dtype=torch.float64), "beta": 0.1}),
        ("kl", {"kl": torch.tensor([0.0, -1e39, 0.0, 0.0, 0.0], dtype=torch.float64), "beta": 0.1}),
        ("kl", {"kl": torch.zeros(5, 1)}),
        ("kl", {"beta": 0.1}),
        ("gamma", {"gamma": 1.5}),
        ("gamma", {"gamma": float("nan")}),
        ("backend", {"backend": ""}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_process_advantage(name: str, change: dict[str, Any], backend: str):
    arguments = {"scores": SCORES, "action_offsets": OFFSETS, "groups": GROUPS, "backend": backend, **change}
    with pytest.raises(ValueError, match=f"^{name}"):
        process_advantage(**arguments)


FOUR = torch.zeros(4)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logprob", {"logprob": torch.zeros(2, 2)}),
        ("logprob", {"logprob": FOUR.bfloat16()}),
        ("behaviour_logprob", {"behaviour_logprob": torch.zeros(3)}),
        ("behaviour_logprob", {"behaviour_logprob": None}),
        ("advantage", {"advantage": FOUR.long()}),
        ("old_logprob", {"old_logprob": torch.zeros(5)}),
        ("entropy", {"entropy": torch.zeros(5)}),
        ("mask", {"mask": FOUR}),
        ("mask", {"mask": torch.ones(3, dtype=torch.bool)}),
        ("kind", {"kind": "grpo"}),
        ("clip_low", {"clip_low": 1.2}),
        ("clip_low", {"clip_low": None}),
        ("clip_low", {"clip_low": "0.2"}),
        ("clip_high", {"clip_high": -0.1}),
        ("clip_high", {"clip_high": None}),
        ("clip_high", {"clip_high": float("nan")}),
        ("tis_cap", {"tis_cap": 0.0}),
        ("sequence_offsets", {"kind": "gspo"}),
        ("sequence_offsets", {"sequence_offsets": torch.tensor([0, 3])}),
        ("sequence_offsets", {"sequence_offsets": torch.tensor([0, 4, 3, 4])}),
        ("sequence_offsets", {"sequence_offsets": torch.zeros(0, dtype=torch.long)}),
        ("denominator", {"denominator": 0.0}),
        ("denominator", {"denominator": torch.ones(2)}),
        ("denominator", {"denominator": "12"}),
        ("groups", {"groups": torch.tensor([0, 1, 2, 0]), "n_groups": 2}),
        ("groups", {"n_groups": 2}),
        ("groups", {"groups": torch.tensor([-5, -5, -6, -5])}),
        ("n_groups", {"groups": torch.zeros(4, dtype=torch.long), "n_groups": 2.0}),
        ("n_groups", {"groups": torch.zeros(4, dtype=torch.long), "n_groups": -1}),
    ],
)
def test_policy_loss(name: str, change: dict[str, Any]):
    arguments: dict[str, Any] = {"logprob": FOUR, "behaviour_logprob": FOUR, "advantage": FOUR, **change}
    with pytest.raises(ValueError, match=f"^{name}"):
        policy_loss(**arguments)


X, BASE = torch.randn(6, 3), torch.randn(6, 5)
DOWN, UP = [torch.randn(2, 3) for _ in range(2)], [torch.randn(5, 2) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.randn(6)}),
        ("x", {"x": torch.randn(6, 0)}),
        ("A", {"A": []}),
        ("A", {"A": [DOWN[0], DOWN[1].bfloat16()]}),
        ("A", {"A": [DOWN[0], torch.randn(3, 3)]}),
        ("A", {"A": [DOWN[0].long(), DOWN[1].long()]}),
        ("A", {"A": [[1.0, 2.0, 3.0]]}),
        ("A", {"A": [DOWN[0][0], DOWN[1][0]]}),
        ("offsets", {"offsets": [0, 2.5, 6]}),
        ("B", {"B": UP[:1]}),
        ("B", {"B": [UP[0], torch.randn(4, 2)]}),
        ("base_out", {"base_out": BASE[:5]}),
        ("base_out", {"base_out": BASE.double()}),
        ("offsets", {"offsets": [0, 6]}),
        ("offsets", {"offsets": [0, 7, 6]}),
        ("offsets", {"offsets": [0, 3, 5]}),
        ("offsets", {"offsets": [1, 3, 6]}),
        ("offsets", {"offsets": torch.tensor([0.0, 3.0, 6.0])}),
        ("offsets", {"offsets": None}),
        ("offsets", {"offsets": ["a"]}),
        ("offsets", {"offsets": [0, 2**70, 6]}),
        ("offsets", {"offsets": [0, None, 6]}),
        ("offsets", {"offsets": [[0, 2], [6]]}),
        ("offsets", {"offsets": 6}),
        ("A", {"A": None}),
        ("B", {"B": None}),
        ("base_out", {"base_out": None}),
        ("scale", {"scale": None}),
        ("scale", {"scale": "0.5"}),
        ("scale", {"scale": 1j}),
        ("scale", {"scale": float("nan")}),
        ("scale", {"scale": 10**400}),
        ("scale", {"scale": torch.ones(2)}),
        ("scale", {"scale": torch.tensor(float("inf"))}),
        ("scale", {"scale": torch.tensor(1j)}),
        ("scale", {"scale": torch.ones((), device="meta")}),
        ("scale", {"scale": torch.ones((), requires_grad=True)}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_lora(name: str, change: dict[str, Any], backend: str):
    arguments: dict[str, Any] = {"x": X, "A": DOWN, "B": UP, "offsets": [0, 2, 6], "scale": 1.0, "base_out": BASE}
    with pytest.raises(ValueError, match=f"^{name}"):
        grouped_lora(**{**arguments, **change}, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_scale_of_grouped_lora_may_be_a_tensor(backend: str):
    plain, wrapped = (
        grouped_lora(X, DOWN, UP, [0, 2, 6], scale, BASE, backend=backend) for scale in (0.5, torch.tensor(0.5))
    )
    assert torch.equal(plain, wrapped)
