"""The program as a person runs it: to the end, interrupted, resumed, on two ranks, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mappa.config import load_config
from mappa.errors import ConfigError
from mappa.evaluate import adapters_folder
from mappa.journal import read_advantages, read_config, read_episodes
from mappa.learn.adapters import read_adapter
from mappa.observe.metrics import read_metrics
from mappa.run import learn_settings, tasks_of_step
from mappa.types import Task

# Several runs to their end each, on cores that other tests may share.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("data_engineer", "modeler", "analyst")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


def config_file(folder: Path, model: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(
        f'name = "tiny"\nmodel = "{model}"\ndtype = "float32"\nsystem = "tests.teams:CoinTeam"\n'
        f'runs = "{folder}/runs"\n'
        "steps = 2\nseed = 3\n[sampler]\ntemperature = 1.0\n[rollout]\nepisodes = 6\n"
        "[learn]\nrank = 4\nlr = 1e-2\nfirst_layer = 1\n[evaluate]\nsamples = 0\n"
    )
    return path


def start(config: Path, *arguments: str, ranks: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    if ranks == 1:
        command = [sys.executable]
    return subprocess.Popen(
        [*command, "-m", "mappa.train", str(config), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def run(config: Path, *arguments: str, ranks: int = 1) -> tuple[int, str]:
    process = start(config, *arguments, ranks=ranks)
    output, _ = process.communicate(timeout=1500)
    return process.returncode, output


def check_finished(folder: Path, model: Path, steps: int, episodes: int) -> None:
    """Summary, journal, metrics, curves and adapters of a run that came to its end."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    summary = json.loads((folder / "summary.json").read_bytes())
    assert summary["steps"] == steps and summary["episodes"] == steps * episodes and summary["train_minutes"] > 0
    assert set(summary["adapters"]) == set(ROLES)
    for phase in ("base", "trained"):
        low, high = summary[phase]["ci"]
        assert 0 <= low <= summary[phase]["success"] <= high <= 1
    assert [m.step for m in read_metrics(folder / "metrics.jsonl")] == list(range(1, steps + 1))
    journal = list(read_episodes(folder / "journal.sqlite"))
    mask_truncated = read_config(folder / "journal.sqlite").learn.mask_truncated
    assert len(journal) == steps * episodes and len({e.id for e in journal}) == len(journal)
    for episode in journal:
        assert episode.error is None and [a.role for a in episode.actions] == list(ROLES)
        for action in episode.actions:
            assert action.adapter == f"{action.role}@{episode.step - 1}"
            assert action.verdict is not None and action.evidence is not None
            assert len(action.output_ids) == len(action.logprobs)
            found = read_advantages(folder / "journal.sqlite", f"{episode.id}/{action.role}/{action.turn}")
            cut = action.finish_reason == "length" and mask_truncated
            masked = cut or action.verdict.score is None
            assert found is None if masked else found is not None and len(found) == len(action.output_ids)
    assert (folder / "curves.png").stat().st_size > 1000
    assert b'"comparisons":[{' in (folder / "report.html").read_bytes()
    for role, path in summary["adapters"].items():
        assert any(bool(b.any()) for _, b in read_adapter(Path(path)).values()), f"{role} has not moved"
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), path)


def check_evaluation(folder: Path) -> None:
    """A finished run is measured again: its base, and its last adapters beside that."""
    for version in ("base", "trained"):
        own = ["rollout.deadline=300", "--greedy", "--version", version]
        own += ["--against", str(folder / "evaluations/base-greedy,rollout.deadline=300.json")] * (version == "trained")
        command = [sys.executable, "-m", "mappa.evaluate", str(folder), *own]
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        assert "no held-out task shares its text" in result.stdout and "0 tasks of the source" in result.stdout
        found = json.loads((folder / f"evaluations/{version}-greedy,rollout.deadline=300.json").read_bytes())
        assert found["habits"].keys() == set(ROLES) and found["measures"]["submission"][0] <= 1
    assert "success, paired over 10 tasks" in result.stdout and "sign-flip p" in result.stdout
    assert "submission, paired over 10 tasks" in result.stdout and "modeler: tokens, paired over" in result.stdout
    first, again = (
        json.loads((folder / name).read_bytes())
        for name in ("evaluation-base-greedy.json", "evaluations/base-greedy,rollout.deadline=300.json")
    )
    assert first["tasks"] == again["tasks"]
    measured = list(read_episodes(folder / "evaluation.sqlite", "trained"))  # the last measurement's journal
    assert measured and all(action.verdict is None for e in measured for action in e.actions), "no coach has a part"
    assert adapters_folder(folder, "1") == folder / "checkpoints/step-000001/adapters"
    assert adapters_folder(folder, str(folder / "adapters")) == adapters_folder(folder, "trained")
    with pytest.raises(ConfigError, match="keeps the checkpoints step-000001, step-000002"):
        adapters_folder(folder, "77")


def export_start(model: Path, folder: Path) -> None:
    """Adapters for a run of `config_file` to start from."""
    from mappa.learn import Learner

    learner = Learner(learn_settings(load_config(config_file(folder.parent, model), [])))
    for role in ROLES:
        learner.export(role, folder / role)


def test_a_run_ends_and_a_finished_one_is_not_done_again(tiny_model: Path, tmp_path: Path) -> None:
    config, start = config_file(tmp_path, tiny_model), tmp_path / "start"
    own = ("evaluate.every=1", f"learn.start={start}")
    export_start(tiny_model, start)
    code, output = run(config, *own)
    assert code == 0, output
    check_finished(tmp_path / "runs" / "tiny", tiny_model, 2, 6)
    shutil.rmtree(start)  # the run has checkpoints of its own now
    before = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_bytes()
    assert json.loads((tmp_path / "runs/tiny/evaluation-step-1-greedy.json").read_bytes())["episodes"] == 10
    code, output = run(config, *own)
    assert code == 0 and "continuing" in output, output
    assert (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_bytes() == before
    check_evaluation(tmp_path / "runs" / "tiny")
    code, output = run(config, *own, "learn.lr=0.5")
    assert code == 2 and "learn.lr: 0.01 -> 0.5" in output and "--fresh" in output, output


def test_two_ranks_learn_from_one_rollout(tiny_model: Path, tmp_path: Path) -> None:
    code, output = run(config_file(tmp_path, tiny_model), ranks=2)
    assert code == 0, output
    check_finished(tmp_path / "runs" / "tiny", tiny_model, 2, 6)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_from_its_last_step(tiny_model: Path, tmp_path: Path, how: signal.Signals) -> None:
    config = config_file(tmp_path, tiny_model)
    folder = tmp_path / "runs" / "tiny"
    process = start(config, "steps=3")
    deadline = time.monotonic() + 400
    while not list(folder.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(how)
    output, _ = process.communicate(timeout=300)  # it finishes what is under way
    if how == signal.SIGINT:
        assert process.returncode == 130 and "goes on where this one was" in output, output
    assert not (folder / "summary.json").exists()
    code, output = run(config, "steps=3")
    assert code == 0 and "continuing" in output, output
    check_finished(folder, tiny_model, 3, 6)


def test_a_second_process_is_kept_out_of_a_running_folder(tiny_model: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, tiny_model)
    first = start(config, "steps=100")  # at work for as long as the second one takes to start
    while not (tmp_path / "runs" / "tiny" / "config.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    code, output = run(config, "steps=100")
    first.kill()
    first.communicate()
    assert code == 2 and "another process is at work" in output, output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("learn.lrr=1",), "unknown key learn.lrr; did you mean learn.lr?"),
        (("model=no-such-model",), "no model folder"),
        (("system=tests.teams:TwiceTeam",), "names the role 'data_engineer' twice"),
        (("tasks.source=/no/such/tasks",), "no task folder"),
        (("learn.lr",), "not of the form"),
        (("sampler.kind=sglang",), "needs sampler.sglang.python or sampler.sglang.urls"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, output = run(config_file(tmp_path, tiny_model), *arguments)
    assert code == 2 and message in output and "Traceback" not in output, output


def test_the_tasks_of_a_step_come_from_shuffled_passes() -> None:
    tasks = [Task(id=str(i), kind="k", prompt="") for i in range(5)]
    drawn = [task.id for step in range(5) for task in tasks_of_step(tasks, step, 3, seed=1)]
    for start_of_pass in range(0, 15, 5):
        assert sorted(drawn[start_of_pass : start_of_pass + 5]) == ["0", "1", "2", "3", "4"]
    assert drawn != [task.id for step in range(5) for task in tasks_of_step(tasks, step, 3, seed=2)]


def test_every_config_that_ships_can_be_read() -> None:
    for path in (ROOT / "configs").glob("*.toml"):
        load_config(path)
