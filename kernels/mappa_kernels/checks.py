"""Argument checks shared by the operations. Every failure is a ValueError that begins with the argument's name."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

LARGEST_RANK = 64
"""Of the GPU kernels for LoRA; the other back-ends take any."""

INDEX_TYPES = (torch.int64, torch.int32)


def require(condition: bool, name: str, problem: str) -> None:
    """Raise `ValueError("name: problem")` unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}: {problem}")


def tensor(name: str, value: object, ndim: int, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
    """A strided tensor of `ndim` dimensions, one of `dtypes`, on `device`."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    # Messages are written when they are needed: this runs several times in operations that take 0.1 ms.
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if value.dim() != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), got shape {tuple(value.shape)}")
    if value.dtype not in dtypes:
        allowed, got = (
            " or ".join(str(one).removeprefix("torch.") for one in ones) for ones in (dtypes, [value.dtype])
        )
        raise ValueError(f"{name}: expected {allowed}, got {got}")
    if value.device != device:
        raise ValueError(f"{name}: is on {value.device}, but the other arguments are on {device}")


def integers(name: str, value: object) -> Tensor:
    """`value` where it is a tensor, else a tensor of the integers it holds."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.tensor(list(value))  # type: ignore[call-overload]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name}: expected integers of at most 64 bits ({error})") from error


def size(name: str, value: object) -> int:
    """Number of entries of something that has a length."""
    try:
        return len(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{name}: expected a sequence, got {type(value).__name__}") from error


def length(name: str, value: Tensor, expected: int, of_what: str) -> None:
    """First dimension is `expected`, the number of `of_what`."""
    require(value.shape[0] == expected, name, f"expected one entry per {of_what} ({expected}), got {value.shape[0]}")


def entries(name: str, value: Tensor, expected: int) -> None:
    """There are `expected` of them."""
    require(len(value) == expected, name, f"expected {expected} entries, got {len(value)}")


def within(name: str, values: Tensor, low: int, high: int) -> None:
    """Every value is in [low, high). Waits for the device."""
    if values.numel() == 0:
        return
    least, most = (int(value) for value in torch.aminmax(values))
    require(low <= least and most < high, name, f"values must be in [{low}, {high}), found {least} to {most}")


def offsets(name: str, values: Tensor, segments: int, total: int | None) -> None:
    """`segments` + 1 ascending integers that begin with 0 and end with `total` (any end where it is None)."""
    entries(name, values, segments + 1)
    first, last = int(values[0]), int(values[-1])
    require(first == 0, name, f"must begin with 0, begins with {first}")
    steps = values.diff()
    if segments and int(steps.min()) < 0:
        at = int(steps.argmin())
        require(False, name, f"must ascend, but entry {at} is {int(values[at])} and the next {int(values[at + 1])}")
    if total is not None:
        require(last == total, name, f"must end with the number of tokens, {total}, ends with {last}")


def number(name: str, value: object) -> float:
    """One real number, or a tensor of one; returned as a float. Waits for its device."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex() or value.is_meta:
            raise ValueError(f"{name}: expected one number, got {value.dtype} {tuple(value.shape)} on {value.device}")
        return float(value.detach())
    if not isinstance(value, Real):
        raise ValueError(f"{name}: expected one number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the largest float
        return math.inf


def count(name: str, value: object) -> int:
    """A whole number in [0, 2^31)."""
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{name}: expected a whole number, got {type(value).__name__}") from error
    require(0 <= whole < 2**31, name, f"must be in [0, 2^31), is {whole}")
    return whole


def finite(name: str, value: object) -> float:
    """`number`, neither NaN nor infinite."""
    one = number(name, value)
    require(math.isfinite(one), name, f"must be finite, is {one}")
    return one


def positive(name: str, value: object) -> float:
    """`number`, finite and above zero."""
    one = number(name, value)
    require(0.0 < one < math.inf, name, f"must be finite and above 0, is {one}")
    return one
