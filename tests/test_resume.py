"""kill -9 at any moment, then the same command: nothing lost, nothing doubled, and the same end bit for bit."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from mappa.cli import main
from mappa.observe.metrics import read_metrics
from tests.killing import STEPS, Job, assert_same_adapters, check, config_file, run_killed, training_rows

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def untouched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, never interrupted."""
    folder = tmp_path_factory.mktemp("untouched")
    code, output = Job(config_file(folder, tiny_model), ranks=1).end()
    assert code == 0, output
    return folder / "runs" / "steady"


def test_killed_three_times_a_run_ends_as_one_that_never_was(untouched: Path, tiny_model: Path, tmp_path: Path) -> None:
    killed = run_killed(config_file(tmp_path, tiny_model), 3, ("rank0", "sandbox"), seed=1, ranks=1)
    assert killed == ["rank0", "sandbox", "rank0"]
    folder = tmp_path / "runs" / "steady"
    check(folder)
    assert [metrics.step for metrics in read_metrics(folder / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert_same_adapters(folder / "adapters", untouched / "adapters")


@pytest.mark.slow
@pytest.mark.timeout(6000)
def test_killed_twenty_times_on_two_ranks(tiny_model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    code, output = Job(config_file(whole, tiny_model), ranks=2).end()
    assert code == 0, output
    killed = run_killed(config_file(broken, tiny_model), 20, ("rank0", "rank1", "sandbox"), seed=2, ranks=2)
    assert len(killed) == 20
    check(broken / "runs" / "steady")
    assert_same_adapters(broken / "runs" / "steady" / "adapters", whole / "runs" / "steady" / "adapters")


def test_a_replay_learns_the_same_from_the_journal(untouched: Path, tmp_path: Path) -> None:
    assert main(["replay", str(untouched), "--out", str(tmp_path / "same")]) == 0
    assert_same_adapters(tmp_path / "same" / "adapters", untouched / "adapters")
    assert main(["replay", str(untouched), "--coach", "rubric", "--out", str(tmp_path / "again")]) == 0
    assert_same_adapters(tmp_path / "again" / "adapters", untouched / "adapters")
    check(tmp_path / "again")


def test_a_trace_shows_every_kind_of_work(untouched: Path, tmp_path: Path) -> None:
    assert main(["trace", str(untouched), "-o", str(tmp_path / "trace.json")]) == 0
    trace = json.loads((tmp_path / "trace.json").read_bytes())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in events} == {"queue", "generate", "tool", "coach", "learn", "publish"}
    assert all(event["dur"] >= 0 for event in events)


def test_the_first_interrupt_finishes_what_is_under_way(untouched: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, tiny_model)
    job = Job(config, ranks=1)
    assert job.wait_for(STEPS * 4 * 3 + 10)  # in the second step, whose checkpoint is not due before its end
    job.process.send_signal(signal.SIGINT)
    code, output = job.end()
    assert code == 130 and "stopping" in output and "goes on where this one was" in output, output
    assert list((tmp_path / "runs" / "steady" / "checkpoints").glob("step-*")), "the first step's update was not kept"
    written = training_rows(job.journal)
    job = Job(config, ranks=1)
    assert job.wait_for(max(STEPS * 4 * 3 + 30, written + 1))  # a row of its own: it is past its start
    job.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    job.process.send_signal(signal.SIGINT)
    code, output = job.end()
    assert code in (0, 130), output
    code, output = Job(config, ranks=1).end()
    assert code == 0, output
    check(tmp_path / "runs" / "steady")
    assert_same_adapters(tmp_path / "runs" / "steady" / "adapters", untouched / "adapters")


def test_the_first_interrupt_of_two_ranks_finishes_what_is_under_way(tiny_model: Path, tmp_path: Path) -> None:
    """torchrun hands it on; its own patience is set to none, which the command has to overrule."""
    config, folder = config_file(tmp_path, tiny_model), tmp_path / "runs" / "steady"
    job = Job(config, ranks=2, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="0")
    assert job.wait_for(STEPS * 4 * 3 + 10)  # in the second step, whose checkpoint is not due before its end
    job.process.send_signal(signal.SIGINT)
    code, output = job.end()
    assert code == 1 and "SignalException" in output, output  # torchrun's own way of ending
    assert "stopping" in output and "goes on where this one was" in output and "forcefully" not in output, output
    assert list((folder / "checkpoints").glob("step-*")), "the first step's update was not kept"
    code, output = Job(config, ranks=1).end()
    assert code == 0, output
    check(folder)
