"""LoRA for many roles at once: one linear layer, one base weight, an adapter per role.

Every adapted linear of a model is a `RoleLinear`. What it adds to its base output in a forward pass is decided by
the `Router` they all share: which adapters are in play, and which rows belong to which. So one pass over the
frozen base serves rows of several roles; the learner routes to its parameters, the sampler to published copies,
and the reference model is the same pass with no adapters at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mappa.errors import AdapterError, ModelError
from mappa_kernels import grouped_lora

Adapter = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Weights of one adapter by module name: A [rank, in] and B [out, rank]."""


class Router:
    """Which adapters the rows of the current forward pass go through.

    `adapters` are in the order of the rows: rows `offsets[i]` to `offsets[i + 1]` belong to `adapters[i]`.
    Outside `route` the pass is the base model's.
    """

    def __init__(self) -> None:
        self.adapters: Sequence[Adapter] = ()
        self.offsets: Sequence[int] = (0,)

    @contextmanager
    def route(self, adapters: Sequence[Adapter], offsets: Sequence[int]) -> Iterator[None]:
        """Route [rows, features] inputs inside the block. `offsets` ascends from 0, one more than `adapters`."""
        before = self.adapters, self.offsets
        self.adapters, self.offsets = adapters, tuple(offsets)
        try:
            yield
        finally:
            self.adapters, self.offsets = before


class RoleLinear(nn.Module):
    """A frozen linear layer plus the routed adapters: y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ of each row's own role."""

    def __init__(self, base: nn.Linear, name: str, scale: float, router: Router) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.scale = scale
        self.router = router

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if not self.router.adapters:
            return y
        pairs = [adapter[self.name] for adapter in self.router.adapters]
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_inference_mode_enabled():
            self._add(rows, y.view(-1, y.shape[-1]), pairs)
            return y
        routed = grouped_lora(
            rows,
            [a for a, _ in pairs],
            [b for _, b in pairs],
            self.router.offsets,
            self.scale,
            y.reshape(-1, y.shape[-1]),
        )
        return routed.view(y.shape)

    def _add(self, rows: torch.Tensor, y: torch.Tensor, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """What `grouped_lora` computes, in place and unchecked: decoding calls this for a handful of rows at a time."""
        start = 0
        for end, (a, b) in zip(self.router.offsets[1:], pairs, strict=True):
            low = rows[start:end] @ a.t()
            y[start:end].addmm_(low, b.t(), alpha=self.scale)
            start = end


def add_roles(
    model: nn.Module, targets: Sequence[str], first_layer: int, scale: float
) -> tuple[Router, dict[str, RoleLinear]]:
    """Replace the targeted linears of `model`'s decoder layers in place. Returns the router and the layers by name.

    Names are the model's own (`model.layers.3.self_attn.q_proj`). Raises ModelError if nothing matches.
    """
    router = Router()
    found: dict[str, RoleLinear] = {}
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear) and leaf in targets and layer_index(name) >= first_layer:
            found[name] = RoleLinear(module, name, scale, router)
            setattr(model.get_submodule(parent), leaf, found[name])
    if not found:
        raise ModelError(
            f"no linear layer named {', '.join(targets)} from layer {first_layer} up; check learn.targets and "
            "learn.first_layer"
        )
    return router, found


def new_adapter(
    layers: Mapping[str, RoleLinear], rank: int, generator: torch.Generator
) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A fresh trainable adapter in fp32: A uniform in ±1/sqrt(in) as in PEFT, B zero: it changes nothing yet."""
    adapter = {}
    for name, layer in layers.items():
        out_features, in_features = layer.base.weight.shape
        bound = 1 / math.sqrt(in_features)
        a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        adapter[name] = (nn.Parameter(a), nn.Parameter(torch.zeros(out_features, rank)))
    return adapter


def check_adapter(layers: Mapping[str, RoleLinear], adapter: Adapter, name: str) -> None:
    """Refuse weights that do not fit the base. Raises AdapterError naming the first layer that is wrong."""
    for key, layer in layers.items():
        if key not in adapter:
            raise AdapterError(
                f"adapter {name!r} has no weights for {key}; it belongs to another base or other targets"
            )
        a, b = adapter[key]
        out_features, in_features = layer.base.weight.shape
        if a.shape[1] != in_features or b.shape[0] != out_features or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"adapter {name!r}: {key} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"the base needs [rank, {in_features}] and [{out_features}, rank]"
            )
    extra = set(adapter) - set(layers)
    if extra:
        raise AdapterError(f"adapter {name!r} has weights for {sorted(extra)[0]}, which this base does not adapt")


def layer_index(name: str) -> int:
    """Index of the decoder layer a module lies in; -1 outside of them."""
    parts = name.split(".")
    return next((int(part) for part in parts if part.isdigit()), -1)
