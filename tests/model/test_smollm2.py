"""The converted model's folder: whole or absent, whoever makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappa.errors import ModelError
from mappa.model import smollm2
from mappa.model.smollm2 import smollm2_folder


def _write(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")


@pytest.fixture(autouse=True)
def _small_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_gguf", lambda: Path("package.gguf"))
    monkeypatch.setattr(smollm2, "_convert", lambda _, folder: _write(folder))


def test_two_runs_that_begin_together_both_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_while_another_does(_: Path, folder: Path) -> None:
        _write(folder)
        monkeypatch.setattr(smollm2, "_convert", lambda _, other: _write(other))
        monkeypatch.setattr("os.getpid", lambda: 1)
        assert smollm2_folder(tmp_path).is_dir()

    monkeypatch.setattr(smollm2, "_convert", convert_while_another_does)
    folder = smollm2_folder(tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert smollm2_folder(tmp_path) == folder


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path, folder: Path) -> None:
        _write(folder)
        raise OSError("the disk is full")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(OSError, match="the disk is full"):
        smollm2_folder(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = smollm2_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelError, match="is damaged; delete that folder"):
        smollm2_folder(tmp_path)
