"""Packed trees compute what every sequence would alone: values and LoRA gradients, on Llama and Qwen3."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import load_base
from mappa.model.lora import add_roles, new_adapter
from mappa_kernels import linear_logprob

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
def test_a_five_level_tree_equals_its_paths_alone(family: str, request: pytest.FixtureRequest) -> None:
    base = load_base(str(request.getfixturevalue(family)), "float32")
    router, layers = add_roles(base.model, TARGETS, 0, 2.0)
    generator = torch.Generator().manual_seed(0)
    adapter = new_adapter(layers, 4, generator)
    for _, b in adapter.values():
        b.data.normal_(0, 0.05, generator=generator)
    parents = [-1, 0, 1, 2, 3, 2, 0, 6]
    lengths = [9, 4, 1, 5, 3, 6, 2, 7]
    nodes = [torch.randint(2, 260, (n,), generator=generator) for n in lengths]
    chains = TreePlan(lengths, parents).chains
    starts = torch.tensor([0, *lengths]).cumsum(0)
    depth = [sum(lengths[i] for i in chain[:-1]) for chain in chains]

    def logprobs(tokens: torch.Tensor, positions: torch.Tensor, plan: TreePlan) -> torch.Tensor:
        with router.route([adapter], [0, len(tokens)]):
            hidden = decode_layers(base.decoder, base.decoder.embed_tokens(tokens)[None], positions, plan)
        return base.decoder.norm(hidden[0])

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        parameters = [p for pair in adapter.values() for p in pair]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    positions = torch.cat([torch.arange(d, d + n) for d, n in zip(depth, lengths, strict=True)])
    packed = logprobs(torch.cat(nodes), positions, TreePlan(lengths, parents))
    alone, together = torch.zeros(()), torch.zeros(())
    for node in (4, 5, 7):  # the leaves
        path = torch.cat([nodes[i] for i in chains[node]])
        single = logprobs(path, torch.arange(len(path)), TreePlan([len(path)], [-1]))
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chains[node]])
        for hidden, name in ((single, "alone"), (packed[rows], "together")):
            values, _ = linear_logprob(hidden[:-1], base.head, path[1:])
            if name == "alone":
                expected, alone = values, alone + values.sum()
            else:
                torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
                together = together + values.sum()
    expected_gradient = gradients(alone)
    torch.testing.assert_close(gradients(together), expected_gradient, atol=1e-4, rtol=1e-4)


def test_the_plan_is_required(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), "float32")
    with pytest.raises(ValueError, match="attends by plan"):
        base.model(torch.tensor([[5, 6, 7]]))
