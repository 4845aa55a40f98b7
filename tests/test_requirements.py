"""The locks hold exactly what pyproject.toml leads to, at the versions that run here."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def pins(name: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("-r"))


def test_locks_are_complete_and_hold_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, REQUIREMENTS / "lock.py", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["torch.txt", "build.txt"])
def test_what_is_installed_first_agrees_with_the_lock(name: str) -> None:
    locked = pins("train.txt")
    assert {package: pin for package, pin in pins(name).items() if locked.get(package, pin) != pin} == {}


def test_data_packages_are_the_pinned_ones() -> None:
    assert {package: version(package) for package in pins("data.txt")} == pins("data.txt")


def test_no_lock_names_an_index() -> None:
    for path in REQUIREMENTS.glob("*.txt"):
        assert not re.search(r"--(extra-)?index-url|--find-links|https?:", path.read_text()), path.name
