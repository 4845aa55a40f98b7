"""Imports go down six floors, never up, never in a circle; the rooms of the third floor do not know each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = {
    6: (
        "mappa.train",
        "mappa.lead",
        "mappa.cli",
        "mappa.doctor",
        "mappa.dryrun",
        "mappa.interrupt",
        "mappa.replay",
        "mappa.serve",
    ),
    5: ("mappa.evaluate", "mappa.observe", "mappa.view"),
    4: ("mappa.rollout", "mappa.journal", "mappa.run"),
    3: ("mappa.tasks", "mappa.systems", "mappa.sandbox", "mappa.coach", "mappa.sampler", "mappa.learn"),
    2: ("mappa.model", "mappa.config", "mappa.types"),
    1: ("mappa", "mappa.errors", "mappa_kernels"),
}
ROOMS = 3
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts}


def modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name."""
    found = {}
    for folder, package in ((ROOT, "mappa"), (ROOT / "kernels", "mappa_kernels")):
        for path in sorted((folder / package).rglob("*.py")):
            names = path.relative_to(folder).with_suffix("").parts
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


def part_of(module: str) -> str:
    """`mappa.coach.rubric` belongs to `mappa.coach`, `mappa_kernels.logprob` to `mappa_kernels`."""
    names = module.split(".")
    return names[0] if names[0] == "mappa_kernels" else ".".join(names[:2])


class Import(NamedTuple):
    target: str
    line: int
    for_types: bool
    """Under `if TYPE_CHECKING:`, so it never runs."""


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Every import of a module of ours in one file, those inside functions included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(inner) for guard in guards for node in guard.body for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets_of(node, package, known):
                yield Import(target, node.lineno, id(node) in for_types)


def targets_of(node: ast.Import | ast.ImportFrom, package: str, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in known]
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
    return [target for target in names if target in known]


def refusal(importer: str, imported: str) -> str | None:
    """Why one module may not import another, or None where it may."""
    above, below = part_of(importer), part_of(imported)
    if above == below:
        return None
    if FLOOR_OF[below] > FLOOR_OF[above]:
        return f"goes up from floor {FLOOR_OF[above]} to {FLOOR_OF[below]}"
    if FLOOR_OF[below] == FLOOR_OF[above] == ROOMS:
        return f"joins two rooms of floor {ROOMS}"
    if above == "mappa_kernels":
        return "makes the kernels know mappa"
    return None


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("mappa.train", "mappa.observe.progress", True),
        ("mappa.observe.progress", "mappa.train", False),
        ("mappa.coach.rubric", "mappa.sandbox", False),
        ("mappa.coach.rubric", "mappa.coach", True),
        ("mappa.rollout", "mappa.journal", True),
        ("mappa.learn.loss", "mappa_kernels", True),
        ("mappa_kernels.logprob", "mappa.errors", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert (refusal(importer, imported) is None) == allowed


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "rubric.py"
    path.write_text(
        "import mappa.config, os\n"
        "from mappa import types\n"
        "from mappa.errors import MappaError\n"
        "from . import context\n"
        "from ..sandbox.server import main\n"
        "if TYPE_CHECKING:\n    from mappa.train import train\n"
        "def late():\n    import mappa_kernels\n"
    )
    names = ["config", "types", "errors", "coach.context", "sandbox.server", "sandbox.server.main", "train"]
    known = dict.fromkeys(["mappa", "mappa_kernels", *(f"mappa.{name}" for name in names)], path)
    assert sorted(imports_of("mappa.coach.rubric", path, known)) == [
        ("mappa.coach.context", 4, False),
        ("mappa.config", 1, False),
        ("mappa.errors", 3, False),
        ("mappa.sandbox.server.main", 5, False),
        ("mappa.train", 7, True),
        ("mappa.types", 2, False),
        ("mappa_kernels", 9, False),
    ]


def test_every_module_has_a_floor() -> None:
    homeless = sorted(name for name in modules() if part_of(name) not in FLOOR_OF)
    assert not homeless, f"give {homeless} a floor in {Path(__file__).name}"


def test_imports_go_down() -> None:
    known = modules()
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}: {name} imports {found.target}: {reason}"
        for name, path in known.items()
        for found in imports_of(name, path, known)
        if (reason := refusal(name, found.target))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_circles() -> None:
    known = modules()
    graph = {
        name: {found.target for found in imports_of(name, path, known) if not found.for_types} - {name}
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports run in a circle: " + " -> ".join(reversed(error.args[1])))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "/usr/bin:/bin"},
    )


def test_import_is_fast_and_light() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import mappa; spent = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules; print(spent)"
    )
    results = [python("-c", code) for _ in range(3)]
    assert all(result.returncode == 0 for result in results), results[0].stderr
    # The best of three: a busy machine slows a start, it never speeds one up.
    assert min(float(result.stdout) for result in results) < 0.3


@pytest.mark.parametrize("module", ["mappa.types", "mappa.config", "mappa.errors", "mappa.cli", "mappa.observe"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'transformers', 'deepspeed', 'pandas', 'sklearn', 'matplotlib', 'tensorboard', 'triton'}"
    result = python("-c", f"import sys, {module}; loaded = {heavy} & set(sys.modules); assert not loaded, loaded")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("program", ["mappa.train", "mappa.cli"])
def test_help_needs_no_torch(program: str) -> None:
    result = python("-X", "importtime", "-m", program, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
    assert not re.search(r"\|\s+torch$", result.stderr, re.MULTILINE), "torch was imported to print a help text"
