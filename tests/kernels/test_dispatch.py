"""Which back-end runs, what is said where one cannot, and a package that needs torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import mappa_kernels
from mappa_kernels import BackendError, available, chosen, linear_logprob, why_not
from tests.kernels.support import problem

OPERATIONS = ["linear_logprob", "process_advantage", "policy_loss", "grouped_lora"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_runs_anywhere(operation):
    for device in ("cpu", "cuda", "meta"):
        assert why_not("reference", operation, device, torch.float64) is None
        assert available(operation, device, torch.float64) == ["reference"]


def test_asking_for_what_cannot_run_says_why():
    hidden, weight, targets = problem(3, 4, 5)
    with pytest.raises(BackendError, match=r"linear_logprob cannot run on backend='triton': .*(GPU|not installed)"):
        linear_logprob(hidden, weight, targets, backend="triton")
    with pytest.raises(BackendError, match="float64"):
        linear_logprob(hidden.double(), weight.double(), targets, backend="cpu")
    with pytest.raises(BackendError, match="no cpu kernel for policy_loss"):
        mappa_kernels.policy_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), backend="cpu")
    assert "cuda" in why_not("cpu", "linear_logprob", "cuda", torch.float32)
    assert "no back-end 'cuda'" in why_not("cuda", "linear_logprob", "cpu", torch.float32)


def test_what_auto_took_can_be_asked_for():
    hidden, weight, targets = problem(3, 4, 5)
    linear_logprob(hidden, weight, targets)
    assert chosen("linear_logprob") == available("linear_logprob")[0]
    linear_logprob(hidden, weight, targets, backend="reference")
    assert chosen("linear_logprob") == "reference"


def test_the_instruction_set_can_be_asked_for(core):
    from mappa_kernels import cpu

    assert cpu.description()["instruction_set"] in core.instruction_sets()
    with pytest.raises(ValueError, match="instruction set"):
        core.select_instruction_set("sse9")
    with pytest.raises(ValueError, match="expected 'auto'"):
        core.set_bfloat16_path("fast")


def interpreter(code: str, environment: dict[str, str]) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_takes_torch_alone(package_environment):
    code = """
import sys, torch
before = set(sys.modules)
import mappa_kernels
roots = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(root for root in roots if root not in ("torch", "mappa_kernels")))
"""
    assert interpreter(code, package_environment) == "[]"


def test_without_the_extension_auto_takes_the_reference(package_environment):
    code = """
import sys
sys.modules["mappa_kernels._C"] = None  # an import that fails
import mappa_kernels, torch
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        mappa_kernels.linear_logprob(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 4]))
reason = mappa_kernels.why_not("cpu", "grouped_lora", "cpu", torch.float32)
print(mappa_kernels.chosen("linear_logprob"), len(caught), reason)
"""
    assert interpreter(code, package_environment).startswith("reference 1 mappa_kernels._C is not built")


def test_an_extension_that_does_not_load_is_reported_once(package_environment, tmp_path):
    """As after an upgrade of torch: a compiled module is there, but its symbols are not."""
    code = f"""
import sys, warnings, mappa_kernels, torch
mappa_kernels.__path__.insert(0, {str(tmp_path)!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        mappa_kernels.linear_logprob(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 4]))
reason = mappa_kernels.why_not("cpu", "grouped_lora", "cpu", torch.float32)
print(mappa_kernels.chosen("linear_logprob"), len(caught), reason)
"""
    (tmp_path / "_C.py").write_text("raise ImportError('undefined symbol')\n")
    assert interpreter(code, package_environment).startswith("reference 1 mappa_kernels._C does not load")
