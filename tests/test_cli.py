from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from mappa import __version__
from mappa.cli import main
from mappa.doctor import Check, show

ROOT = Path(__file__).resolve().parent.parent


def doctor(interpreter: str, home: Path, *, path: str = os.environ["PATH"]) -> tuple[int, dict[str, Check]]:
    """Exit status and findings of `mappa doctor --json` as `interpreter` runs it."""
    done = subprocess.run(
        [interpreter, "-m", "mappa.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
        env={"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "MAPPA_HOME": str(home), "HOME": str(home)},
    )
    assert done.stdout, done.stderr
    return done.returncode, {check.name: check for check in msgspec.json.decode(done.stdout, type=list[Check])}


@pytest.fixture
def light_core(tmp_path: Path) -> str:
    """The interpreter of an environment that holds what pyproject.toml calls the light core, and nothing else."""
    environment = tmp_path / "light"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    for name in ("httpx", "markdown_it", "mdurl", "msgspec", "pygments", "rich"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (site_packages / name).symlink_to(Path(spec.origin).parent)
    return str(environment / "bin" / "python")


def test_a_prepared_machine_is_found_ready(tmp_path: Path) -> None:
    status, checks = doctor(sys.executable, tmp_path)
    assert {name for name, check in checks.items() if check.needed and not check.ok} == set()
    assert status == 0
    assert "2.13.0" in checks["torch"].found
    assert "attacks" in checks["sandbox"].found
    assert str(tmp_path / "models") in checks["base model"].found


def test_the_light_core_alone_is_told_what_to_install(light_core: str, tmp_path: Path) -> None:
    status, checks = doctor(light_core, tmp_path)
    assert status == 1
    missing = {name: check.fix for name, check in checks.items() if not check.ok}
    assert {"torch", "libraries", "DeepSpeed", "base model", "tasks"} <= missing.keys()
    assert all(missing.values())
    assert "No module named 'torch'" in checks["torch"].found
    assert "transformers" in checks["libraries"].found
    assert missing["base model"] == "make setup"


def test_a_machine_without_a_compiler_is_told_so(light_core: str, tmp_path: Path) -> None:
    _, checks = doctor(light_core, tmp_path, path=str(tmp_path))
    assert not checks["compiler"].ok
    assert "g++" in checks["compiler"].fix


def test_a_damaged_base_model_is_not_trusted(light_core: str, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half a file")
    _, checks = doctor(light_core, tmp_path)
    assert not checks["base model"].ok
    assert checks["base model"].fix == f"rm -r {folder}"


def test_text_names_what_is_missing_and_its_fix() -> None:
    checks = [
        Check(name="torch", ok=True, found="2.13.0"),
        Check(name="sandbox", ok=False, found="no [user] namespaces", fix="sudo apt-get install -y bubblewrap"),
        Check(name="kernels", ok=False, found="reference", fix="make setup", needed=False),
    ]
    console = Console(file=io.StringIO(), width=60, color_system=None)
    with console.capture() as captured:
        show(checks, console)
    assert captured.get().splitlines() == [
        "ok      torch         2.13.0",
        "missing sandbox       no [user] namespaces",
        "                      sudo apt-get install -y bubblewrap",
        "absent  kernels       reference",
        "                      make setup",
        "",
        "The quickstart cannot run yet: 1 missing.",
    ]


def test_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mappa {__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["heal"])
    assert "invalid choice: 'heal'" in capsys.readouterr().err
