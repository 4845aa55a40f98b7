"""Wheels of mappa and of its kernels alone: what is in them with a compiler, without one, and without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from mappa import __version__

# Builds and installations, each in processes of its own, on cores that other tests may share.
pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).parents[2]
PROJECTS = {"mappa": ".", "mappa_kernels": "kernels"}
"""The folder that a distribution is built from."""
BUILD_LIMIT = 120.0
"""Seconds of CPU."""
IMPORTED = {"mappa_kernels", "triton", "sympy", "mpmath"}
"""What may be imported besides torch: the last two are torch's own, imported late."""

# Prints what it found and what it found it with.
LOG_PROB = """
import sys, warnings, torch
warnings.simplefilter("ignore")
before = {name.partition(".")[0] for name in sys.modules}
import mappa_kernels
hidden, weight, targets = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 1, 4])
logprob, _ = mappa_kernels.linear_logprob(hidden, weight, targets)
torch.testing.assert_close(logprob, (hidden @ weight.T).log_softmax(-1)[range(3), targets])
late = {name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names
print(mappa_kernels.__file__, mappa_kernels.chosen("linear_logprob"), *sorted(late))
print(mappa_kernels.why_not("cpu", "linear_logprob", "cpu", torch.float32))
"""
# Builds <argv[1]> as pip does, on an interpreter that has no torch: a source archive, and a wheel from that.
WITHOUT_TORCH = """
import os, pathlib, sys, tarfile
sys.modules["torch"] = None
from setuptools import build_meta
os.chdir(sys.argv[1])
made = pathlib.Path("made").absolute()
with tarfile.open(made / build_meta.build_sdist(str(made))) as archive:
    archive.extractall(made, filter="data")
(unpacked,) = (path for path in made.iterdir() if path.is_dir())
os.chdir(unpacked)
build_meta.build_wheel(str(made))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What an installation from source reads, without anything built."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a checkout")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "build", "*.egg-info")
    for name in ("csrc", "kernels", "mappa"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore, symlinks=True)
    return tmp_path


def pip(folder: Path, *arguments: str, **environment: str) -> str:
    """What pip said; it is given no index."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def build(checkout: Path, project: str, **environment: str) -> tuple[Path, str]:
    """The wheel that pip builds of a project, and what pip said."""
    folder = f"./{PROJECTS[project]}"
    said = pip(checkout, "wheel", "--no-build-isolation", "--verbose", "-w", "wheels", folder, **environment)
    (wheel,) = (checkout / "wheels").glob(f"{project}-*.whl")
    return wheel, said


def compute(wheel: Path) -> tuple[str, str]:
    """Installed in a folder of its own: the back-end that gave right log-probs, and what keeps the C++ one away."""
    target = wheel.parent / "installed"
    pip(wheel.parent, "install", "--target", str(target), str(wheel))
    environment = {**os.environ, "PYTHONPATH": f"{target}:{sysconfig.get_path('purelib')}"}
    command = [sys.executable, "-S", "-c", LOG_PROB]  # -S: no editable installation
    done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    found, obstacle = done.stdout.splitlines()
    file, backend, *late = found.split()
    assert file == f"{target}/mappa_kernels/__init__.py" and set(late) <= IMPORTED
    return backend, obstacle


def packaged(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def sources(project: str) -> set[str]:
    """Every file of the packages of a project."""
    folders = [ROOT / "kernels" / "mappa_kernels"] + ([ROOT / "mappa"] if project == "mappa" else [])
    files = (path.relative_to(folder.parent) for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts and path.suffix != ".so"}


@pytest.mark.parametrize(
    ("project", "compiler"),
    [("mappa", "/bin/false"), ("mappa_kernels", "one that fails later")],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_so_once(checkout: Path, project: str, compiler: str) -> None:
    if compiler == "one that fails later":
        script = checkout / "compiler"
        script.write_text("#!/bin/sh\ncase $1 in -*version) echo 'g++ (GCC) 12.2.0';; *) exit 1;; esac\n")
        script.chmod(0o755)
        compiler = str(script)
    wheel, said = build(checkout, project, CC=compiler, CXX=compiler)
    assert said.count("mappa_kernels will run on its torch reference") == 1
    assert wheel.name == f"{project}-{__version__}-py3-none-any.whl"
    assert packaged(wheel) == sources(project)
    backend, obstacle = compute(wheel)
    assert backend == "reference" and obstacle.startswith("mappa_kernels._C is not built")


@pytest.mark.parametrize("project", PROJECTS)
def test_without_torch_the_source_archive_still_makes_the_whole_wheel(checkout: Path, project: str) -> None:
    """As under pip's build isolation, which gives a build no torch."""
    folder = checkout / PROJECTS[project]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "made").glob("*.whl")
    assert wheel.name == f"{project}-{__version__}-py3-none-any.whl" and packaged(wheel) == sources(project)
    with tarfile.open(folder / "made" / f"{project}-{__version__}.tar.gz") as archive:
        carried = {path.partition("/")[2] for path in archive.getnames()}
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.is_file()} <= carried


def test_both_distributions_have_one_version() -> None:
    for folder in PROJECTS.values():
        assert tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"] == __version__


@pytest.mark.slow
@pytest.mark.parametrize("project", PROJECTS)
def test_with_a_compiler_the_wheel_has_the_extension_within_two_minutes(checkout: Path, project: str) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no compiler")
    before = os.times()
    wheel, said = build(checkout, project)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < BUILD_LIMIT
    assert "torch reference" not in said and "none-any" not in wheel.name
    (extension,) = packaged(wheel) - sources(project)
    assert extension.startswith("mappa_kernels/_C.") and extension.endswith(".so")
    assert compute(wheel) == ("cpu", "None")
