"""A role's trainable weights: one parameter per decoder layer, of which the adapter's matrices are views.

ZeRO's bookkeeping costs some 0.4 ms per parameter and step, which a parameter per matrix pays fourteen times over; one
for the whole role would hold all of its gradient until the backward pass has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from mappa.model.lora import Adapter, layer_index


class RoleWeights:
    """The parameters of one role's adapter.

    >>> weights = RoleWeights(new_adapter(layers, 16, generator))
    >>> a, b = weights.adapter()["model.layers.3.self_attn.q_proj"]  # the matrices themselves, no gradient
    """

    def __init__(self, adapter: Adapter) -> None:
        self._shapes: dict[int, dict[str, tuple[torch.Size, torch.Size]]] = {}
        for name, (a, b) in adapter.items():
            self._shapes.setdefault(layer_index(name), {})[name] = (a.shape, b.shape)
        self.parameters = {layer: nn.Parameter(self.join(layer, adapter)) for layer in self._shapes}

    def trainable(self) -> Adapter:
        """The matrices as functions of the parameters: gradients of theirs arrive in the parameters."""
        return self._matrices(self.parameters)

    def adapter(self) -> Adapter:
        """The matrices as they are: views of the parameters, without gradient."""
        return self._matrices({layer: parameter.detach() for layer, parameter in self.parameters.items()})

    def split(self, layer: int, flat: torch.Tensor) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
        """(module name, (A, B)) of a decoder layer, as views of what is laid out like its parameter."""
        shapes = self._shapes[layer]
        pieces = iter(flat.split([shape.numel() for pair in shapes.values() for shape in pair]))
        for name, (a, b) in shapes.items():
            yield name, (next(pieces).view(a), next(pieces).view(b))

    def join(self, layer: int, adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The inverse of `split`: a layer's matrices laid out like its parameter."""
        return torch.cat([tensor.detach().flatten() for name in self._shapes[layer] for tensor in adapter[name]])

    def _matrices(self, parameters: Mapping[int, torch.Tensor]) -> Adapter:
        return dict(pair for layer, flat in parameters.items() for pair in self.split(layer, flat))
