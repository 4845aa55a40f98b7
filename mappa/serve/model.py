"""A client's model: an adapter of its own rank, the gradient gathered so far, and its optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from mappa.learn.weights import RoleWeights
from mappa.model.lora import Adapter, RoleLinear
from mappa.serve.errors import UserError
from mappa.serve.wire import AdamParams


class ModelWeights(RoleWeights):
    """An adapter among others of other ranks.

    All models of a step are computed at the server's rank: matrices are padded with zeros, which stay zero and add
    exactly nothing, and layers that this model leaves alone get zeros too. So what a model computes does not depend on
    which others are in the step. Its own scale, alpha / rank, goes into B.
    """

    def __init__(self, adapter: Adapter, layers: Mapping[str, RoleLinear], *, rank: int, limit: int, alpha: float):
        super().__init__(adapter)
        self.rank = rank
        self._padding = limit - rank
        self._scale = alpha / rank
        self._absent = {
            name: (torch.zeros(limit, layer.base.in_features), torch.zeros(layer.base.out_features, limit))
            for name, layer in layers.items()
            if name not in adapter
        }

    def trainable(self) -> Adapter:
        """As of `RoleWeights`, scaled and padded, for layers of scale 1."""
        padded = {
            name: (F.pad(a, (0, 0, 0, self._padding)), F.pad(b * self._scale, (0, self._padding)))
            for name, (a, b) in super().trainable().items()
        }
        return padded | self._absent

    def served(self) -> Adapter:
        """What a sampler of scale-1 layers computes the same with: unpadded, without gradient."""
        return {name: (a, b * self._scale) for name, (a, b) in self.adapter().items()} | self._absent


class Model:
    """Weights, gradient and AdamW of one model id. Belongs to the worker's thread."""

    def __init__(self, id: str, weights: ModelWeights) -> None:
        self.id = id
        self.weights = weights
        self.parameters = list(weights.parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.0)
        self.steps = 0
        self._gathered: list[torch.Tensor] | None = None

    @property
    def has_gradient(self) -> bool:
        """Whether something was gathered that no `optim_step` has taken yet."""
        return self._gathered is not None

    def gather(self) -> None:
        """Add what a step has left in the parameters to the gradient of the next `optim_step`."""
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self._gathered is None:
            self._gathered = found
        else:
            torch._foreach_add_(self._gathered, found)
        self.discard()

    def discard(self) -> None:
        """Forget what a step has left in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def optim_step(self, params: AdamParams) -> dict[str, float]:
        """One AdamW step with the gathered gradient, which is then gone. Returns metrics.

        Raises UserError where there is no gradient or it is not finite; nothing is changed then.
        """
        if self._gathered is None:
            raise UserError("there is no gradient: call forward_backward before optim_step")
        gathered, self._gathered = self._gathered, None
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gathered))
        if not math.isfinite(norm):
            raise UserError("the gradient holds a NaN or infinite value; it was dropped and nothing was updated")
        if 0 < params.grad_clip_norm < norm:
            torch._foreach_mul_(gathered, params.grad_clip_norm / norm)
        for parameter, gradient in zip(self.parameters, gathered, strict=True):
            parameter.grad = gradient
        self.optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        self.optimizer.step()
        self.discard()
        self.steps += 1
        return {"grad_norm": norm}
