"""A run's folder: what `--fresh` deletes of it, and what it never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mappa.config import Config
from mappa.errors import ConfigError
from mappa.run import Run


def opened(runs: Path, name: str = "first", *, fresh: bool = False, **changes: int) -> Path:
    run = Run.open(Config(name=name, runs=str(runs), **changes), fresh=fresh)
    run.close()
    return run.folder


def test_a_fresh_run_starts_in_an_empty_folder(tmp_path: Path) -> None:
    folder = opened(tmp_path, seed=1)
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "journal.sqlite").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"seed: 1 -> 2\nrun with --fresh"):
        opened(tmp_path, seed=2)
    opened(tmp_path, seed=2, fresh=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"] and (tmp_path / "elsewhere").is_dir()
    for left in ((), ("config.building",)):
        (folder / "config.json").unlink()
        for name in left:
            (folder / name).touch()
        opened(tmp_path, fresh=True)


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    with pytest.raises(
        ConfigError, match=r"work is not deleted: it holds thesis.tex and no config.json of a run; move"
    ):
        opened(tmp_path, "work", fresh=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "name": "x"}')
    with pytest.raises(ConfigError, match="holds config.json and no config.json of a run"):
        opened(tmp_path, "model", fresh=True)
    opened(tmp_path, "first")
    with pytest.raises(ConfigError, match="is not deleted"):
        opened(tmp_path, ".", fresh=True)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years" and (tmp_path / "first" / "config.json").exists()


def test_where_no_folder_can_be_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for runs, name in (("/dev/null/x", "a"), (str(tmp_path / "file" / "runs"), "a"), (str(tmp_path), "file")):
        for fresh in (False, True):
            with pytest.raises(ConfigError, match=r"cannot be a run's folder: .*; set runs=FOLDER or name=OTHER"):
                opened(Path(runs), name, fresh=fresh)
    assert (tmp_path / "file").read_text() == "x"
    opened(tmp_path, "a")
    opened(tmp_path, "a")  # nobody holds its lock
