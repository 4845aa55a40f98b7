"""What the GPU kernels compile to, and a prediction of their time on an H100. No GPU is needed or measured."""

from __future__ import annotations

import torch

from mappa_kernels.gpu import sweep
from mappa_kernels.gpu.configs import SHARED_LIMIT, candidates
from mappa_kernels.gpu.offline import ARCHITECTURES, cases, compiled

TENSOR_RATE = 989e12 * 0.65
"""bf16 FLOP/s: an H100 SXM's peak, and the share of it that well-tuned Triton products of this size reach."""
MEMORY_RATE = 3.35e12 * 0.85
"""Bytes/s, likewise."""


def report(*, quick: bool) -> None:
    """Print one line per kernel and architecture, then the prediction."""
    for where in ARCHITECTURES[1:2] if quick else ARCHITECTURES:
        print(f"{where}: shared memory limit {SHARED_LIMIT[where]} bytes")
        for case in cases(where):
            if quick and ("fp32" in case.name or "fp16" in case.name):
                continue
            result = compiled(case, where)
            spill = f"  SPILLS {result.stack} bytes" if result.stack else ""
            print(f"  {case.name:44s} registers {result.registers:3d}  shared {result.shared:6d}{spill}")
    predict(16384, 4096, 151936)


def predict(tokens: int, width: int, vocabulary: int) -> None:
    """Predicted, from FLOPs and bytes at stated rates. Nothing here was measured on a GPU."""
    print(f"\npredicted (not measured) for an H100, {tokens}x{width}x{vocabulary} bf16, at {TENSOR_RATE / 1e12:.0f}")
    print(f"TFLOP/s and {MEMORY_RATE / 1e12:.2f} TB/s; compute and memory traffic of a kernel taken to overlap:")
    token_chunks, vocabulary_chunks = -(-tokens // sweep.TOKENS), -(-vocabulary // sweep.VOCABULARY)
    flops = 2.0 * tokens * width * vocabulary
    weight_bytes = 2.0 * width * vocabulary * token_chunks
    numerators = 2.0 * tokens * vocabulary
    sums = 2 * 4.0 * tokens * width * vocabulary_chunks
    tile = candidates("logits", torch.bfloat16, "sm_90")[0].columns
    statistic = 4.0 * tokens * (vocabulary / tile)
    steps = {
        "logits, log-prob alone": (flops, weight_bytes + 3 * statistic),
        "logits, numerators kept": (flops, weight_bytes + 4 * statistic + numerators),
        "accumulate": (flops, weight_bytes + numerators + sums),
    }
    times = {}
    for name, (work, traffic) in steps.items():
        times[name] = max(work / TENSOR_RATE, traffic / MEMORY_RATE)
        print(f"  {name:26s} {work / 1e12:6.1f} TFLOP  {traffic / 1e9:6.1f} GB  {times[name] * 1e3:6.1f} ms")
    total = times["logits, numerators kept"] + times["accumulate"]
    print(f"  log-prob {times['logits, log-prob alone'] * 1e3:.1f} ms; with its gradient {total * 1e3:.1f} ms;")
    scratch = 2 * sweep.TOKENS * sweep.VOCABULARY + 4 * tokens * width
    print(f"  extra memory {scratch / 1e6:.0f} MB (all logits in bf16: {2 * tokens * vocabulary / 1e9:.1f} GB)")
