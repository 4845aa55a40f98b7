"""What the pages show, run: README's team by its command, the commands about a run, programs that are short."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mappa import cli, evaluate, train
from mappa.config import cache_home
from mappa.journal import read_episodes
from mappa.systems import load_system
from mappa.tasks import prepare
from tests.pages import PAGES, ROOT, commands, dry_make, program, python, what
from tests.stages import Theatre


def test_the_kernels_of_the_page() -> None:
    generator = torch.Generator().manual_seed(0)
    given = {
        "hidden": torch.randn(6, 8, generator=generator, requires_grad=True),
        "head": torch.nn.Linear(8, 11, bias=False),
        "targets": torch.randint(11, (6,), generator=generator),
        "behaviour_logprob": torch.full((6,), -2.0),
        "scores": torch.tensor([0.3, 0.9]),
        "action_offsets": torch.tensor([0, 2, 6]),
        "roles": torch.tensor([0, 0]),
        "kl": torch.zeros(6),
        "tokens_of_all_ranks": 6,
    }
    exec(python("docs/kernels.md"), given)
    gradient = given["hidden"].grad
    assert gradient is not None and gradient.isfinite().all() and bool(gradient.any())


def test_the_sandbox_of_the_page() -> None:
    """As it stands there, within a function that may wait."""
    text = python("docs/sandbox.md")
    body = "\n".join(f"    {line}" for line in text.splitlines()) + "\n    return result"
    given: dict[str, Any] = {"data": b"a,b\n1,2\n"}
    exec(f"async def story():\n{body}", given)
    result = asyncio.run(given["story"]())
    assert result.outcome == "ok" and result.stdout == "(1, 2)\n"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of two of the quickstart's tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    found = prepare("quickstart", cache_home())
    for split, task in (("train", found.train[0]), ("heldout", found.heldout[0])):
        (folder / split).mkdir()
        assert task.folder is not None
        (folder / split / task.id).symlink_to(task.folder)
    return folder


def test_the_team_of_readme_goes_on_from_what_failed(tiny_model: Path, table: Path, tmp_path: Path) -> None:
    (tmp_path / "my_team.py").write_text(python("README.md"))
    team = load_system(f"{tmp_path / 'my_team.py'}:pair")
    assert len(python("README.md").splitlines()) <= 20
    task = prepare(str(table), cache_home()).train[0]
    replies = {"writer": ["```python\n1 / 0\n```"], "fixer": ["```python\nprint(open('train.csv').readline())\n```"]}
    theatre = Theatre(tiny_model, tmp_path)
    episode = theatre.play(team, task, replies)
    assert [action.role for action in episode.actions] == ["writer", "fixer"] and episode.error is None
    assert "ZeroDivisionError" in theatre.sampler.prompts["fixer"][0]
    assert episode.actions[1].execution is not None and episode.actions[1].execution.outcome == "ok"


@pytest.fixture(scope="module")
def first(tiny_model: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of README's team, by README's command: its config and base are small ones."""
    home = tmp_path_factory.mktemp("home")
    (home / "my_team.py").write_text(python("README.md"))
    (command,) = (command for command in commands("README.md") if any("my_team.py" in word for word in command.words))
    (line,) = (line for line in dry_make(command.words[1:]) if "-m mappa.train" in line)
    config, *overrides = line.partition("-m mappa.train ")[2].split()
    small = (
        f"model={tiny_model}", f"tasks.source={table}", f"runs={home}/runs", "dtype=float32", "steps=1", "threads=1",
        "rollout.episodes=2", "learn.first_layer=1", "evaluate.samples=1", "evaluate.greedy=false",
        "sandbox.preload=[]",
    )  # fmt: skip
    here = Path.cwd()
    os.chdir(home)
    try:
        assert train.main([str(ROOT / config), *overrides, *small]) == 0
        yield home / "runs" / "pair"
    finally:
        os.chdir(here)
        sys.modules.pop("my_team", None)


def test_the_team_of_readme_is_trained_by_its_command(first: Path) -> None:
    episodes = list(read_episodes(first / "journal.sqlite"))
    assert len(episodes) == 2 and all(episode.error is None for episode in episodes)
    assert all(action.verdict and action.verdict.score is not None for e in episodes for action in e.actions)
    assert {path.name for path in (first / "adapters").iterdir()} == {"writer", "fixer"}
    assert {"report.html", "summary.json", "curves.png", "tensorboard"} <= {path.name for path in first.iterdir()}


def test_commands_about_a_run(
    first: Path, tiny_model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the pages, on that run; and on a config of its kind that has not been run."""
    problems, config = tmp_path / "problems.jsonl", tmp_path / "new.toml"
    problems.write_text(json.dumps({"problem": "What is 2 + 3?", "answer": "5"}))
    config.write_text(
        f'name = "new"\nmodel = "{tiny_model}"\nsystem = "my_team.py:pair"\nruns = "{tmp_path}"\ndtype = "float32"\n'
        f'threads = 1\ntasks.source = "{table}"\nsandbox.preload = []\nevaluate.samples = 1\nlearn.first_layer = 1\n'
    )
    stands_for = {
        "CONFIG.toml": str(config),
        "jsonl:FILE": f"jsonl:{problems}",
        "FILE": str(tmp_path / "page.html"),
        "trace.json": str(tmp_path / "trace.json"),
    }
    ran = set()
    for command in (command for page in PAGES for command in commands(page)):
        _, words = program(command)
        words = [stands_for.get(word, re.sub(r"^runs/(first|NAME|quickstart)", str(first), word)) for word in words]
        if what(command) in ("mappa report", "mappa trace") or (what(command) == "mappa top" and "--once" in words):
            status = cli.main(words)
        elif what(command) == "python -m mappa.evaluate":
            status = evaluate.main(words[2:])
        else:
            continue
        assert status == 0, (command, capsys.readouterr().err)
        ran.add(what(command))
    assert ran == {"mappa report", "mappa trace", "mappa top", "python -m mappa.evaluate"}
    assert (tmp_path / "page.html").stat().st_size > 10_000 and (tmp_path / "trace.json").stat().st_size > 100
    assert "sign-flip p" in capsys.readouterr().out
