"""Settings of the kernel tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import mappa_kernels
from mappa_kernels import dispatch


@pytest.fixture
def core() -> Iterator[object]:
    """`mappa_kernels._C`; what a test selects in it is put back."""
    module = dispatch.extension()
    if module is None:
        pytest.skip("mappa_kernels._C is not built")
    before = module.instruction_set()
    yield module
    module.select_instruction_set(before)
    module.set_bfloat16_path("auto")


@pytest.fixture(scope="session")
def package_environment() -> dict[str, str]:
    """The environment of a fresh interpreter that finds the package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mappa_kernels.__file__).parents[1])}
