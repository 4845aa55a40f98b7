"""Compile every GPU kernel for every architecture on a machine without a GPU, and read what came out.

    for case in cases("sm_90"):
        print(case.name, compiled(case, "sm_90"))

Registers, stack and shared memory come from the compilers' own reports. A stack means that registers were spilled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mappa_kernels.gpu import advantage, lora, policy, sweep, sweep_kernels
from mappa_kernels.gpu.configs import SHARED_LIMIT, Config, candidates

ARCHITECTURES = tuple(SHARED_LIMIT)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


_EVEN = ("width", "columns", "depth", "vocabulary", "first", "rank")


@dataclass(frozen=True)
class Case:
    """One kernel with its constants, as it would be launched."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    """Triton types by argument; what is missing is a constant."""
    constants: dict[str, Any]
    warps: int
    stages: int
    product: bool = False
    """A large matrix product: it must run on the tensor cores."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler reports of one kernel."""

    registers: int
    stack: int
    """Bytes per thread that did not fit into registers."""
    shared: int
    """Bytes per block."""
    assembly: str
    """PTX, or AMD's assembly."""


def cases(where: str) -> list[Case]:
    """Everything that may be launched on an architecture."""
    products = [
        case
        for dtype in TYPES
        for kind in ("logits", "numerators", "weighted", "accumulate", "accumulate weighted")
        for config in candidates(kind, dtype, where)
        for case in (_accumulate if kind.startswith("accumulate") else _logits)(kind, dtype, config)
    ]
    return [*products, *_small(where)]


def compiled(case: Case, where: str) -> Compiled:
    """Compile for an architecture. Raises what Triton raises where it cannot."""
    names = case.kernel.arg_names
    signature = {name: case.arguments.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # As at run time for the sizes of real models: Triton specialises on arguments that 16 divides.
    even = [name for name in names if signature[name].startswith("*") or name.startswith("stride") or name in _EVEN]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in even if signature[name] != "constexpr"}
    source = ASTSource(case.kernel, signature, constants, attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    result = triton.compile(source, target=TARGETS[where], options=options)
    if where.startswith("gfx"):
        return _from_amd(result.asm["amdgcn"], result.metadata.shared)
    return _from_nvidia(result.asm["cubin"], result.asm["ptx"], result.metadata.shared)


def _from_nvidia(cubin: bytes, ptx: str, shared: int) -> Compiled:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return Compiled(_number(r"REG:(\d+)", report), _number(r"STACK:(\d+)", report), shared, ptx)


def _from_amd(assembly: str, shared: int) -> Compiled:
    return Compiled(
        registers=_number(r"\.vgpr_count:\s*(\d+)", assembly),
        stack=_number(r"\.private_segment_fixed_size:\s*(\d+)", assembly),
        shared=shared,
        assembly=assembly,
    )


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise RuntimeError(f"the compiler's report has no {pattern}")
    return int(found[1])


def _case(
    name: str, kernel: Any, types: str, constants: dict[str, Any], config: Config | None = None, **more: Any
) -> Case:
    """`types`: 'argument:type ...'; a kernel of a product takes its tile from `config`."""
    arguments = dict(pair.split(":") for pair in types.split())
    if config is None:
        return Case(name, kernel, arguments, constants, more.get("warps", 4), more.get("stages", 2))
    tile = {"ROWS": config.rows, "COLUMNS": config.columns, "INNER": config.inner, "GROUP": sweep.BAND, "UPCAST": False}
    label = f"{name} {config.rows}x{config.columns}x{config.inner} w{config.warps} s{config.stages}"
    return Case(label, kernel, arguments, {**constants, **tile}, config.warps, config.stages, product=True)


def _logits(kind: str, dtype: torch.dtype, config: Config) -> list[Case]:
    d = TYPES[dtype]
    common = f"hidden:*{d} weight:*{d} targets:*i64 scale:*fp32 tokens:i32 vocabulary:i32 first:i32 last:i32 width:i32"
    strides = "stride_h:i32 stride_w:i32"
    own = (
        f"shares:*{d} weighted_shares:*{d} tops:*fp32 totals:*fp32 weighted:*fp32 kept:*fp32 kept_weighted:*fp32 "
        "at_target:*fp32 stride_s:i32"
    )
    gradient = f"top:*fp32 log_total:*fp32 entropy:*fp32 grad_logprob:*fp32 grad_entropy:*fp32 out:*{d} stride_o:i32"
    constants = {"KEEP": kind != "logits", "KEEP_WEIGHTED": kind == "weighted"}
    first = _case(f"{kind} {d}", sweep_kernels.logits, f"{common} {strides} {own}", constants, config)
    if kind != "numerators":
        return [first]
    return [
        first,
        _case(f"coefficients {d}", sweep_kernels.coefficients, f"{common} {strides} {gradient}", {}, config),
    ]


def _accumulate(kind: str, dtype: torch.dtype, config: Config) -> list[Case]:
    d = TYPES[dtype]
    types = (
        f"left:*{d} right:*{d} sums:*fp32 extra_left:*{d} extra_sums:*fp32 drops:*fp32 carry:*fp32 "
        "rows:i32 columns:i32 depth:i32 stride_r:i32"
    )
    weighted = kind == "accumulate weighted"
    shifted = {"SPAN": 256, "SHIFTED": True, "WEIGHTED": weighted, "stride_ld": 1}
    plain = {"SPAN": 1, "SHIFTED": False, "WEIGHTED": False, "stride_lr": 1}
    kernel = sweep_kernels.accumulate
    first = _case(f"{kind} {d}", kernel, f"{types} stride_lr:i32", shifted, config)
    # Without shifts it multiplies the transposed coefficients: the weight's gradient.
    return (
        [first]
        if weighted
        else [first, _case(f"{kind} {d} transposed", kernel, f"{types} stride_ld:i32", plain, config)]
    )


def _small(where: str) -> list[Case]:
    """The kernels that move data more than they compute."""
    token_tiles = "roles:*i32 starts:*i32 stops:*i32"
    precision = "bf16x3" if where.startswith("gfx") else "tf32x3"
    low_rank = {"ROWS": lora.ROWS, "PRECISION": precision}
    ranks = (16, 64)
    return [
        _case(
            "merge",
            sweep_kernels.merge,
            "tops:*fp32 totals:*fp32 weighted:*fp32 kept:*fp32 kept_weighted:*fp32 scale:*fp32 top_state:*fp32 "
            "total_state:*fp64 weighted_state:*fp64 kept_state:*fp64 kept_weighted_state:*fp64 carry:*fp32 tokens:i32 "
            "tiles:i32",
            {"KEEP": True, "BLOCK": 128},
        ),
        _case(
            "finish",
            sweep_kernels.finish,
            "weight:*bf16 targets:*i64 scale:*fp32 total:*fp32 deviation:*fp32 mean:*fp32 weighted:*fp32 width:i32 "
            "stride_w:i32",
            {"WEIGHTED": True, "BLOCK": 1024},
        ),
        _case(
            "action_returns",
            advantage.action_returns_kernel,
            "scores:*fp64 offsets:*i64 kl:*fp32 options:*fp64 returns:*fp64 stats:*fp64",
            {"HAS_KL": True, "BLOCK": advantage.BLOCK},
        ),
        _case(
            "whiten",
            advantage.whiten_kernel,
            "returns:*fp64 offsets:*i64 groups:*i64 stats:*fp64 options:*fp64 advantage:*fp32",
            {"WHITEN": True, "BLOCK": advantage.BLOCK},
        ),
        *(
            _case(
                f"policy {kind}",
                policy.policy_kernel,
                "logprob:*fp32 behaviour:*fp32 advantage:*fp32 old:*fp32 mask:*i8 entropy:*fp32 groups:*i64 "
                "sequence_ratio:*fp32 gradient:*fp32 sums:*fp32 tokens:i32 low:fp32 high:fp32 cap:fp32 largest:fp32 "
                "n_groups:i32",
                {"KIND": number, "HAS_OLD": True, "HAS_CAP": True, "HAS_ENTROPY": True, "BLOCK": policy.BLOCK},
            )
            for kind, number in policy.KINDS.items()
        ),
        *(
            _case(
                f"shrink r{rank}",
                lora.shrink,
                f"x:*bf16 matrices:*fp32 low:*fp32 {token_tiles} scale:fp32 width:i32 rank:i32 stride_x:i32 "
                "stride_m:i32 stride_mr:i32 stride_l:i32",
                {**low_rank, "RANK": rank, "INNER": lora.inner(rank), "stride_mk": 1},
                warps=lora.warps(rank),
                stages=3,
            )
            for rank in ranks
        ),
        *(
            _case(
                f"expand r{rank}",
                lora.expand,
                f"low:*fp32 matrices:*fp32 base:*bf16 out:*bf16 {token_tiles} width:i32 rank:i32 stride_l:i32 "
                "stride_m:i32 stride_mk:i32 stride_o:i32",
                {**low_rank, "RANK": rank, "ADD": True, "COLUMNS": lora.columns(rank), "stride_mr": 1},
                warps=lora.warps(rank),
            )
            for rank in ranks
        ),
        *(
            _case(
                f"reduce r{rank}",
                lora.reduce,
                "low:*fp32 x:*bf16 sums:*fp32 spans:*i32 stops:*i32 width:i32 rank:i32 stride_l:i32 stride_x:i32",
                {**low_rank, "RANK": rank, "TILES": lora.SPAN, "COLUMNS": lora.columns(rank), "TYPE": tl.float32},
                warps=lora.warps(rank),
            )
            for rank in ranks
        ),
    ]
