"""How real SGLang servers are started on a CPU: what `sampler.sglang` needs for it. `make sglang` builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-sglang" / "bin" / "python"


def cpu_servers(*, tokens: int = 16384, requests: int = 32) -> dict[str, Any]:
    """Settings of `SGLangConfig`: plain torch everywhere, room for so many cached tokens and running requests.

    The shims are on these servers' path alone.
    """
    options = {
        "device": "cpu",
        "attention-backend": "torch_native",
        "sampling-backend": "pytorch",
        "grammar-backend": "none",
        "lora-backend": "torch_native",
        "max-total-tokens": str(tokens),
        "max-running-requests": str(requests),
        "log-level": "info",
    }
    flags = ("--disable-cuda-graph", "--disable-overlap-schedule", "--skip-server-warmup", "--sleep-on-idle")
    return {
        "python": str(PYTHON),
        "args": (*(text for name, value in options.items() for text in (f"--{name}", value)), *flags),
        "environment": {
            "PYTHONPATH": str(ROOT / "tools" / "sglang-cpu" / "shims"),
            "SGLANG_USE_CPU_ENGINE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
    }
