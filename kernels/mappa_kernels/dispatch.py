"""Which implementation runs an operation: chosen once per call, never silently, and open to questions.

    reference   plain torch, any device
    cpu         C++ (`mappa_kernels._C`)
    triton      GPU kernels
    auto        the fastest of these that can run for the tensors at hand

`why_not` says what keeps a back-end from running, `chosen` what the last call of an operation ran on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Literal

import torch

Backend = Literal["auto", "reference", "cpu", "triton"]
Operation = Literal["linear_logprob", "process_advantage", "policy_loss", "grouped_lora"]

# Operations each back-end implements; the reference implements all of them.
_IMPLEMENTED: dict[str, frozenset[str]] = {
    "cpu": frozenset({"linear_logprob", "process_advantage", "grouped_lora"}),
    "triton": frozenset({"linear_logprob", "process_advantage", "policy_loss", "grouped_lora"}),
}
ORDER = ("triton", "cpu", "reference")
"""Fastest first."""
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_chosen: dict[str, str] = {}


class BackendError(RuntimeError):
    """A back-end was asked for by name and cannot run here. The message says why."""


def chosen(operation: Operation) -> str | None:
    """The back-end that the last call of `operation` in this process ran on; None before the first call."""
    return _chosen.get(operation)


def available(
    operation: Operation, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[str]:
    """The back-ends that can run `operation` for tensors of `dtype` on `device`, the one `auto` takes first."""
    device = torch.device(device)
    return [name for name in ORDER if why_not(name, operation, device, dtype) is None]


def why_not(backend: str, operation: Operation, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why `backend` cannot run `operation` for tensors of `dtype` on `device`; None where it can."""
    device = torch.device(device)
    if backend == "reference":
        return None
    if backend not in _IMPLEMENTED:
        return f"there is no back-end {backend!r}"
    if operation not in _IMPLEMENTED[backend]:
        return f"there is no {backend} kernel for {operation}"
    if dtype not in _KERNEL_TYPES:
        return f"the {backend} kernels take float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if backend == "cpu":
        return _no_cpu(device)
    return _no_triton(device)


def choose(
    backend: str,
    operation: Operation,
    device: torch.device,
    dtype: torch.dtype,
    barred: Mapping[str, str] | None = None,
) -> str:
    """Resolve `backend` for one call and remember it. `barred`: back-ends this call's arguments rule out, with reasons.

    Raises BackendError where the one asked for cannot run, ValueError for an unknown name.
    """
    barred = barred or {}
    if backend == "auto":
        backend = next(one for one in ORDER if one not in barred and why_not(one, operation, device, dtype) is None)
        missed = why_not("cpu", operation, device, dtype) if backend == "reference" else None
        if missed is not None and missed == _extension()[1]:
            _warn_once(missed)
    elif backend not in ("reference", "cpu", "triton"):
        raise ValueError(f"backend: expected 'auto', 'reference', 'cpu' or 'triton', got {backend!r}")
    else:
        reason = why_not(backend, operation, device, dtype) or barred.get(backend)
        if reason is not None:
            raise BackendError(f"{operation} cannot run on backend={backend!r}: {reason}")
    _chosen[operation] = backend
    return backend


def extension() -> ModuleType | None:
    """The compiled module; None where the package was installed without a compiler, or for another torch."""
    return _extension()[0]


def interpreting() -> bool:
    """Triton's interpreter runs the kernels, on CPU tensors (set TRITON_INTERPRET=1 before the first import)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _extension() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or why there is none."""
    if importlib.util.find_spec("mappa_kernels._C") is None:
        return None, "mappa_kernels._C is not built (install from source with a C++ compiler: pip install .)"
    try:
        return importlib.import_module("mappa_kernels._C"), None
    except ImportError as error:
        return None, f"mappa_kernels._C does not load, build it again with this torch ({error})"


@functools.cache
def _has_triton() -> bool:
    """Looked up once: it takes longer than a small kernel."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"mappa_kernels runs on its torch reference, which is slower: {reason}", stacklevel=4)


def _no_cpu(device: torch.device) -> str | None:
    return f"the tensors are on {device}" if device.type != "cpu" else _extension()[1]


def _no_triton(device: torch.device) -> str | None:
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return f"the tensors are on {device}; triton needs a GPU"
    return None if _has_triton() else "triton is not installed"
