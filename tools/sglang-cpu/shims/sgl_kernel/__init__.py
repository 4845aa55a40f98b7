"""In the place of SGLang's compiled kernels, of which there is no build for a CPU without AMX.

SGLang imports their names while it loads and then takes its plain torch paths, so every name is here and none works.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what Python itself asks a module for
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"sgl_kernel.{name} was called, and this machine has no compiled kernels")

    return absent
