"""The heap that all executions are forked from: preloaded, frozen, in huge pages.

A fork copies one page table entry for each page the parent has touched, and the child gives each back. With the heap in
huge pages there are a few dozen instead of tens of thousands: a third less time per execution.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Sequence

from .syscalls import collapse

_HUGE = 2 << 20


def preload(names: Sequence[str]) -> None:
    """Import `names`. ImportError where that fails or leaves threads behind."""
    for name in names:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise ImportError(f"importing {', '.join(names)} started {threads - 1} threads, which no fork would have")


def settle() -> None:
    """Leave the heap as forks should find it: copied as little as possible by what they and this process do."""
    gc.collect()
    _gather()
    gc.freeze()
    gc.disable()  # a collection would touch, and so copy, pages that all forks share


def _gather() -> None:
    """Put this process's anonymous memory into huge pages where whole ones fit. Does nothing before Linux 6.1."""
    with open("/proc/self/maps") as file:
        lines = file.readlines()  # at once: gathering changes the map
    for line in lines:
        span, permissions, _, _, inode = line.split()[:5]
        if inode != "0" or not permissions.startswith("rw-p"):
            continue
        begin, end = (int(address, 16) for address in span.split("-"))
        first = -(-begin // _HUGE) * _HUGE
        for address in range(first, end - _HUGE + 1, _HUGE):
            collapse(address, _HUGE)
