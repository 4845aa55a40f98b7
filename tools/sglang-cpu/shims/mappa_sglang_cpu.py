"""What SGLang needs to run without any accelerator: a plugin of it, which it loads in every process it starts.

SGLang asks for pinned memory wherever it stages data for a device, and torch refuses that where there is no device.
Pinning only speeds copies up, so here it is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device


def drop_pinned_memory() -> None:
    if torch.accelerator.is_available():
        raise RuntimeError("the shims for CPU servers are on the path of a machine that has an accelerator")
    # `with torch.device("meta")` knows torch's factories by identity and remembers them when first asked: that must be
    # before they are replaced, or tensors would silently land on another device than the block says.
    for factory in _device._device_constructors():
        if getattr(torch, factory.__name__, None) is factory:
            setattr(torch, factory.__name__, _unpinned(factory))
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self


def _unpinned(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        return factory(*args, **kwargs)

    return make
