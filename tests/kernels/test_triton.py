"""The GPU kernels without a GPU: run in Triton's interpreter, and compiled for every architecture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from mappa_kernels.gpu import offline
from mappa_kernels.gpu.configs import SHARED_LIMIT, Config, tune

MATRIX_INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
FIRST = ("logits bf16 128x256", "numerators bf16 128x128", "accumulate bf16 128x128", "action_returns", "policy ppo")


@pytest.mark.timeout(900)
def test_everything_in_the_interpreter(package_environment):
    """In a process of its own: Triton decides at its first import whether it interprets."""
    root = Path(__file__).parents[2]
    paths = f"{root}:{package_environment['PYTHONPATH']}"
    environment = {**package_environment, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/kernels/interpreted.py"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=860)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def check(case: offline.Case, where: str) -> None:
    """No spills, shared memory within the limit, and tensor cores where there is a large product."""
    result = offline.compiled(case, where)
    assert result.stack == 0, f"{where} {case.name} spills {result.stack} bytes per thread"
    assert result.shared <= SHARED_LIMIT[where]
    if case.product and "fp32" not in case.name:
        assert MATRIX_INSTRUCTION[where] in result.assembly


@pytest.mark.parametrize("start", FIRST)
def test_a_hopper_build_of_each_kind(start):
    case = next(case for case in offline.cases("sm_90") if case.name.startswith(start))
    check(case, "sm_90")


@pytest.mark.parametrize("start", ["numerators bf16", "accumulate bf16", "shrink r16", "merge"])
@pytest.mark.parametrize("where", [where for where in offline.ARCHITECTURES if where != "sm_90"])
def test_the_main_kernels_on_the_other_architectures(where, start):
    case = next(case for case in offline.cases(where) if case.name.startswith(start))
    check(case, where)


@pytest.mark.slow
@pytest.mark.parametrize("where", offline.ARCHITECTURES)
def test_every_kernel_compiles_for(where):
    for case in offline.cases(where):
        check(case, where)


def test_every_candidate_fits_the_shared_memory():
    for where in offline.ARCHITECTURES:
        # AMD's pipeline holds one stage less in shared memory: the first lives in registers.
        held = {case.name: case for case in offline.cases(where) if case.product}
        for case in held.values():
            tile = case.constants
            stages = case.stages - 1 if where.startswith("gfx") else case.stages
            size = 4 if "fp32" in case.name else 2
            config = Config(tile["ROWS"], tile["COLUMNS"], tile["INNER"], case.warps, stages)
            assert config.shared_bytes(size) <= SHARED_LIMIT[where], case.name


def test_a_kernel_that_changes_its_input_is_never_tuned():
    import torch

    with pytest.raises(ValueError, match="accumulate"):
        tune("accumulate", torch.bfloat16, 4096, torch.device("cuda"), lambda config: None)
