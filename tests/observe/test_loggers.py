"""Numbers go where the config says, to the real libraries where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mappa.config import Config, LogConfig
from mappa.errors import ConfigError
from mappa.observe.loggers import Loggers
from mappa.observe.metrics import RoleMetrics, StepMetrics

METRICS = StepMetrics(step=1, episodes=4, success=0.5, roles={"modeler": RoleMetrics(actions=4, score=6.0)})


def log(folder: Path, log: LogConfig, step: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    with Loggers(folder, Config(name="a", log=log), step) as loggers:
        loggers.write(METRICS)


def test_tensorboard_alone_needs_nothing_else(tmp_path: Path) -> None:
    log(tmp_path / "run", LogConfig())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]


@pytest.mark.parametrize(
    ("name", "settings"), [("wandb", LogConfig(wandb="offline")), ("trackio", LogConfig(trackio=True))]
)
def test_a_missing_logger_is_said_with_what_to_do(
    name: str, settings: LogConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(ConfigError, match=f"pip install {name}, or set log.{name}="):
        log(tmp_path / "run", settings)


@pytest.mark.filterwarnings("default")
def test_wandb_offline_keeps_the_run_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is optional: pip install wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log(tmp_path / "run", LogConfig(wandb="offline"))
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"score/modeler" in file.read_bytes()
    assert file.stem == f"run-{(tmp_path / 'run' / 'logger-id').read_text()}"


@pytest.mark.filterwarnings("default")
def test_trackio_goes_on_with_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is optional: pip install trackio")
    log(tmp_path / "run", LogConfig(trackio=True))
    log(tmp_path / "run", LogConfig(trackio=True), 2)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert b"score/modeler" in stored and (tmp_path / "run" / "logger-id").read_bytes() in stored
