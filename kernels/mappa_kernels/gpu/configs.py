"""Tile sizes: one table per architecture.

Tiles decide in which order a row is summed. A configuration therefore depends on the architecture, the type and the
width, never on the number of tokens: a token's bits do not change with its batch. `tune` measures the candidates of a
kernel on the machine at hand; a kernel that changes its input is never run by it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mappa_kernels import dispatch


@dataclass(frozen=True)
class Config:
    """Tile of C (rows x columns), step along the inner index, warps, and how many steps are loaded ahead."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def shared_bytes(self, element_size: int) -> int:
        """What the pipeline holds: both sides of the product for every stage."""
        return (self.rows + self.columns) * self.inner * element_size * self.stages


SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Bytes of shared memory one block may use."""

# Candidates by kernel and architecture, the one to use unmeasured first. All of them keep every accumulator in a
# register: `numerators` hold logits and numerators at once, so their tiles are half of those of `logits`.
_SIXTEEN_BIT: dict[str, dict[str, tuple[Config, ...]]] = {
    "logits": {
        "sm_80": (Config(128, 128, 64, 8, 3), Config(128, 128, 32, 8, 4)),
        "sm_90": (Config(128, 256, 64, 8, 3), Config(128, 256, 64, 8, 4), Config(128, 128, 64, 8, 4)),
        "sm_100": (Config(128, 128, 64, 8, 4), Config(128, 128, 64, 8, 3)),
        "gfx942": (Config(128, 128, 64, 8, 2), Config(128, 128, 32, 8, 2)),
    },
    "numerators": {
        "sm_80": (Config(64, 128, 64, 8, 4),),
        "sm_90": (Config(128, 128, 64, 8, 4), Config(64, 256, 64, 8, 3)),
        "sm_100": (Config(128, 128, 64, 8, 4), Config(64, 256, 64, 8, 3)),
        "gfx942": (Config(128, 128, 64, 8, 2), Config(64, 128, 64, 8, 2)),
    },
    "weighted": {
        "sm_80": (Config(64, 128, 64, 8, 3),),
        "sm_90": (Config(64, 64, 64, 4, 4),),
        "sm_100": (Config(64, 128, 64, 8, 3),),
        "gfx942": (Config(64, 128, 64, 8, 2),),
    },
    "accumulate": {
        "sm_80": (Config(128, 128, 64, 8, 3),),
        "sm_90": (Config(128, 128, 64, 8, 4),),
        "sm_100": (Config(128, 128, 64, 8, 4),),
        "gfx942": (Config(128, 128, 64, 8, 2),),
    },
    "accumulate weighted": {
        "sm_80": (Config(64, 128, 64, 8, 3),),
        "sm_90": (Config(128, 128, 64, 8, 4),),
        "sm_100": (Config(64, 128, 64, 8, 3),),
        "gfx942": (Config(64, 128, 64, 8, 2),),
    },
}
# fp32 goes through the plain multiply-add units: small tiles.
_FLOAT32 = (Config(64, 64, 32, 8, 2),)
# The interpreter runs program by program in Python.
_INTERPRETED = (Config(32, 64, 32, 4, 1),)

Measure = Callable[[Callable[[], object]], float]
"""Takes something to run, returns how long it took."""

_tuned: dict[tuple[str, str, torch.dtype, int], Config] = {}


def config(kernel: str, dtype: torch.dtype, width: int, device: torch.device) -> Config:
    """The configuration of `kernel` for rows of `width` elements of `dtype`.

    logits: statistics alone; numerators: e too; weighted: e and e x; accumulate, accumulate weighted: the second
    product with e and with e x.
    """
    where = architecture(device)
    return _tuned.get((kernel, where, dtype, width), candidates(kernel, dtype, where)[0])


def candidates(kernel: str, dtype: torch.dtype, where: str) -> Sequence[Config]:
    """Configurations worth trying, the default first."""
    if where == "interpreter":
        return _INTERPRETED
    return _FLOAT32 if dtype is torch.float32 else _SIXTEEN_BIT[kernel][where]


def milliseconds(run: Callable[[], object]) -> float:
    """Time on the GPU, the mean of many runs."""
    from triton.testing import do_bench

    return float(do_bench(run))


def tune(
    kernel: str,
    dtype: torch.dtype,
    width: int,
    device: torch.device,
    run: Callable[[Config], object],
    measure: Measure = milliseconds,
) -> Config:
    """Time `run` under each candidate and use the fastest from now on. `run` must leave its inputs as they are."""
    if kernel.startswith("accumulate"):
        raise ValueError("kernel: accumulate adds to its input; running it to measure it would change the result")
    where = architecture(device)
    timed = {one: measure(functools.partial(run, one)) for one in candidates(kernel, dtype, where)}
    _tuned[kernel, where, dtype, width] = min(timed, key=lambda one: timed[one])
    return _tuned[kernel, where, dtype, width]


@functools.cache
def architecture(device: torch.device) -> str:
    """The table to read for a device; machines between two tables take the older one."""
    if dispatch.interpreting():
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "gfx942"
    return "sm_100" if properties.major >= 10 else "sm_90" if properties.major == 9 else "sm_80"
