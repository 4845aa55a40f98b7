"""The build of the C++ kernels: what happens without a compiler, and how long it takes with one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_LIMIT = 120.0
"""Seconds, on two cores."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What an installation from source reads, without anything built."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "kernels", "mappa"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def install(checkout: Path, **environment: str) -> tuple[Path, str]:
    """pip install ., into a folder of its own; returns that and what pip said."""
    target = checkout / "installed"
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--verbose"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), "."]
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return target, done.stdout + done.stderr


def run(code: str, target: Path) -> str:
    """What a fresh interpreter prints that finds `target` and site-packages, but no editable installation."""
    environment = {**os.environ, "PYTHONPATH": f"{target}:{sysconfig.get_path('purelib')}"}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "one that fails later"])
def test_without_a_compiler_it_installs_says_so_once_and_runs(checkout, compiler):
    if compiler == "one that fails later":
        script = checkout / "compiler"
        script.write_text("#!/bin/sh\ncase $1 in -*version) echo 'g++ (GCC) 12.2.0';; *) exit 1;; esac\n")
        script.chmod(0o755)
        compiler = str(script)
    target, said = install(checkout, CC=compiler, CXX=compiler)
    assert said.count("mappa_kernels will run on its torch reference") == 1
    assert not list((target / "mappa_kernels").glob("_C*"))
    code = (
        "import warnings, torch, mappa_kernels as k; warnings.simplefilter('ignore');"
        "k.linear_logprob(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 4])); print(k.__file__);"
        "print(k.available('linear_logprob'), k.why_not('cpu', 'linear_logprob', 'cpu', torch.float32))"
    )
    file, backends = run(code, target).splitlines()
    assert file == f"{target}/mappa_kernels/__init__.py"
    assert backends.startswith("['reference'] mappa_kernels._C is not built")


@pytest.mark.slow
def test_the_extension_builds_in_two_minutes(checkout):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no compiler")
    started = time.monotonic()
    target, said = install(checkout)
    assert time.monotonic() - started < BUILD_LIMIT
    assert "torch reference" not in said
    assert list((target / "mappa_kernels").glob("_C*.so"))
    assert "instruction_set" in run("import mappa_kernels.cpu as c; print(c.description())", target)
