"""The paper's runs, worked out without weights: what they need is said, what cannot fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mappa.config import load_config
from mappa.dryrun import make_plan
from mappa.run import learn_settings
from mappa.systems import load_system
from mappa.tasks import prepare
from mappa.train import main

from .tasks.published import write_dsbench

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ACCURACY = "accuracy_score(actual[args.value], submission[args.value])"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Small data in the layouts that the configs ask for."""
    monkeypatch.setenv("MAPPA_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mappa.dryrun.cache_home", lambda: tmp_path / "cache")
    for name in ("one", "two", "three"):
        write_dsbench(tmp_path / "ds", name, kind="classification", function="accuracy_score", call=ACCURACY)
    for part, first in (("train", 0), ("heldout", 1000)):
        lines = [json.dumps({"problem": f"What is {first + n} + 1?", "answer": first + n + 1}) for n in range(40)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    maths = [f"tasks.source=jsonl:{tmp_path}/train.jsonl", f"tasks.heldout=jsonl:{tmp_path}/heldout.jsonl"]
    return {"dsbench": [f"tasks.source=dsbench:{tmp_path}/ds", "tasks.heldout_tasks=1"], "mathchat": maths}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*gpu.toml")), ids=lambda path: path.stem)
def test_the_papers_runs_fit_their_gpus(
    path: Path, sources: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = sources[path.stem.partition("-")[0]]
    ranks = path.stem.rpartition("-")[2].removesuffix("gpu")
    assert main([str(path), *overrides, "--dry-run", "--ranks", ranks]) == 0
    shown = capsys.readouterr().out
    assert f"on {ranks} GPUs, predicted, in GB:" in shown and "tokens of an epoch, at most:" in shown
    assert "are left: keys and values of" in shown
    assert main([str(path), *overrides, "--dry-run", "--ranks", ranks, "--gpu-gb", "6"]) == 2
    assert "GB per GPU (predicted) and there are 6" in capsys.readouterr().err


def test_tasks_that_are_not_there_yet_are_said_and_counted_as_the_config_has_them(
    sources: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(CONFIGS / "dsbench-qwen3-4b-8gpu.toml")
    assert main([path, "--dry-run", "--ranks", "8", "tasks.source=dsbench:nowhere", "learn.rank=16"]) == 0
    shown = capsys.readouterr().out
    assert "NOT THERE" in shown and "no data_resplit folder in nowhere" in shown
    assert "tasks: 64 to learn from, 8 to measure on" in shown and "memory per GPU" in shown
    assert main([path, "--dry-run", "tasks.source=dsbench:nowhere", "tasks.train_tasks=0"]) == 2
    assert "no data_resplit folder" in capsys.readouterr().err


def test_a_coach_is_paid_for_by_all_its_members(
    sources: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, given = str(CONFIGS / "mathchat-qwen3-4b-8gpu.toml"), [*sources["mathchat"], "--dry-run", "coach.kind=llm"]
    assert main([path, *given, "coach.chat.dollars_in=0.5", "coach.chat.dollars_out=2.0"]) == 0
    read, written = 80 * 4 * 28672, 80 * 4 * 700
    assert f"{(read + written) / 1e6:.1f} M tokens, {(0.5 * (read + written) + 1.5 * written) / 1e6:.2f} dollars" in (
        capsys.readouterr().out
    )
    assert main([path, *given]) == 0
    assert "dollars unknown" in capsys.readouterr().out
    two = [f"coach.member.{name}.dollars_in=0.5" for name in ("one", "two")]
    assert main([path, *given[:-1], "coach.kind=ensemble", *two]) == 0
    assert f"{(read + written) * 2 / 1e6:.1f} M tokens, {read / 1e6:.2f} dollars" in capsys.readouterr().out


def test_the_numbers_of_a_plan(sources: dict[str, list[str]], tmp_path: Path) -> None:
    config = load_config(CONFIGS / "mathchat-qwen3-4b-8gpu.toml", sources["mathchat"])
    tasks = prepare(config.tasks, tmp_path)
    plan = make_plan(config, learn_settings(config), load_system(config.system), tasks, ranks=8)
    assert (plan.train_tasks, plan.heldout_tasks, plan.episodes) == (40, 40, 80)
    assert plan.actions == 80 * 4 and plan.generated == 80 * 4 * 4096, "1 + 2 + 1 actions of 4,096 tokens"
    assert plan.steps == 80 / 64 and plan.epochs == 128 / plan.steps and plan.dollars is None
    assert plan.sequence == 2 * 36 * 8 * 128 * 2 * 28672
    assert plan.memory.base == pytest.approx(2 * 4.02e9, rel=0.01)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampler.max_context=4096", "leaves nothing of sampler.max_context=4096"),
        ("learn.tokens_per_micro_batch=8192", "cannot hold the longest action"),
        ("model=Nobody/nothing", "the sizes of 'Nobody/nothing' cannot be read"),
    ],
)
def test_what_cannot_run_is_refused(
    override: str, message: str, sources: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(CONFIGS / "mathchat-qwen3-4b-8gpu.toml")
    assert main([path, *sources["mathchat"], override, "--dry-run", "--ranks", "8"]) == 2
    assert message in capsys.readouterr().err
