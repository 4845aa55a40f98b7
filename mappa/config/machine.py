"""What this machine has, and where things are kept on it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """Where base models and prepared tasks are kept: $MAPPA_HOME, or ~/.cache/mappa."""
    return Path(os.environ.get("MAPPA_HOME") or Path.home() / ".cache" / "mappa")


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
