"""Settings every test needs before the first heavy import: few threads, no hub, no stray writes."""

import os

# Read once, when the libraries load. Two ranks with two threads each on two cores are slower than with one.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples on every run, and no time limit per example: the machine may be busy.
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=40, database=None)
settings.load_profile("steady")

_LONGEST = ("test_real_base.py", "test_train.py", "test_resume.py", "test_ranks.py")
"""Files that take minutes. A worker that began one of them last would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model (see tests/tiny.py)."""
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the Qwen3 family: queries and keys are normalised per head."""
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen3", family="qwen3")
