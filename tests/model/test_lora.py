"""Rows of several roles in one pass, each through its own adapter."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from mappa.errors import AdapterError, ModelError
from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import Base, load_base
from mappa.model.lora import Adapter, Router, add_roles, check_adapter, new_adapter

TARGETS = ("q_proj", "v_proj", "down_proj")


def run(base: Base, router: Router, adapters: list[Adapter], offsets: list[int], tokens: torch.Tensor) -> torch.Tensor:
    lengths = [b - a for a, b in itertools.pairwise(offsets)]
    positions = torch.cat([torch.arange(n) for n in lengths])
    with router.route(adapters, offsets):
        plan = TreePlan(lengths, [-1] * len(lengths))
        return decode_layers(base.decoder, base.decoder.embed_tokens(tokens)[None], positions, plan)[0]


@pytest.mark.parametrize("inference", [False, True])
def test_each_role_gets_its_own_adapter(tiny_model: Path, inference: bool) -> None:
    base = load_base(str(tiny_model), "float32")
    router, layers = add_roles(base.model, TARGETS, 1, 0.5)
    generator = torch.Generator().manual_seed(1)
    adapters = [new_adapter(layers, 4, generator) for _ in range(2)]
    for adapter in adapters:
        for _, b in adapter.values():
            b.data.normal_(generator=generator)
    a, b = torch.randint(2, 260, (7,), generator=generator), torch.randint(2, 260, (5,), generator=generator)
    with torch.inference_mode(inference):
        both = run(base, router, list(adapters), [0, 7, 12], torch.cat([a, b]))
        torch.testing.assert_close(both[:7], run(base, router, [adapters[0]], [0, 7], a), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both[7:], run(base, router, [adapters[1]], [0, 5], b), atol=1e-5, rtol=1e-5)


def test_a_new_adapter_changes_nothing_and_none_is_the_base(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), "float32")
    tokens = torch.arange(2, 12)
    plain = run(base, Router(), [], [0, 10], tokens)
    router, layers = add_roles(base.model, TARGETS, 0, 2.0)
    fresh = new_adapter(layers, 4, torch.Generator().manual_seed(0))
    assert torch.equal(run(base, router, [fresh], [0, 10], tokens), plain)
    plan = TreePlan([10], [-1])
    hidden = decode_layers(base.decoder, base.decoder.embed_tokens(tokens)[None], torch.arange(10), plan)
    assert torch.equal(hidden[0], plain)


def test_adapters_that_do_not_fit_are_refused_by_layer(tiny_model: Path) -> None:
    _, layers = add_roles(load_base(str(tiny_model), "float32").model, TARGETS, 0, 2.0)
    good: dict[str, tuple[torch.Tensor, torch.Tensor]] = dict(new_adapter(layers, 4, torch.Generator()))
    name = next(iter(good))
    check_adapter(layers, good, "a@1")
    with pytest.raises(AdapterError, match="no weights for"):
        check_adapter(layers, {k: v for k, v in good.items() if k != name}, "a@1")
    with pytest.raises(AdapterError, match="the base needs"):
        check_adapter(layers, {**good, name: (torch.zeros(4, 3), good[name][1])}, "a@1")
    with pytest.raises(AdapterError, match="does not adapt"):
        check_adapter(layers, {**good, "lm_head": good[name]}, "a@1")


def test_targets_that_match_nothing_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"learn\.targets"):
        add_roles(load_base(str(tiny_model), "float32").model, ("query",), 0, 1.0)
