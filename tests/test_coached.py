"""A whole run under a coach that is bought: everything that may be switched on is on, its budget ends, it is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.parts.coach_server import Server
from mappa.cli import main
from mappa.journal import read_calls, read_reviews
from mappa.learn import checkpoint
from mappa.observe.metrics import read_metrics
from tests.killing import EPISODES, ROLES, STEPS, Job, assert_same_adapters, check, config_file

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(content='{"evidence":["it says so"],"fault":"none","reason":"all is well","score":10}') as server:
        yield server


def coached(folder: Path, model: Path, server: Server, budget: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = config_file(folder, model)
    path.write_text(
        f"{path.read_text()}[coach]\nkind = 'llm'\nbudget_tokens = {budget}\ncanary_every = 1\nanchor_every = 1\n"
        "repeat = 0.5\ncorrect = 'offset'\nretrospect = true\nmemory = true\n"
        f"[coach.chat]\nurl = '{server.url}'\nmodel = 'stand-in'\nhedge = 0.0\n"
    )
    return path


@pytest.fixture(scope="module")
def untouched(server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("coached")
    code, output = Job(coached(folder, tiny_model, server), ranks=1).end()
    assert code == 0, output
    assert "coach: the coach gave 10 points to a canary (an order)" in output, output
    return folder / "runs" / "steady"


def test_what_is_seen_of_the_coach_stands_in_the_metrics(untouched: Path) -> None:
    steps = read_metrics(untouched / "metrics.jsonl")
    assert [step.step for step in steps] == [1, 2, 3]
    for step in steps:
        assert {f"{role}/regression/mean" for role in ("data_engineer", "modeler", "analyst")} <= set(step.coach)
        assert any("canary" in alarm for alarm in step.alarms)
    assert steps[-1].coach["drift"] == 0.0 and steps[-1].coach["repeat spread"] == 0.0
    assert list(read_reviews(untouched / "journal.sqlite")) == [1, 2, 3]


def test_a_spent_budget_stops_the_run_and_a_larger_one_lets_it_go_on(
    server: Server, untouched: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Then it is killed, and goes on again: it ends as if nothing had happened, and nothing was bought twice."""
    spent = sum(tokens for tokens, _ in read_calls(untouched / "journal.sqlite").values())
    server.script(content='{"evidence":["it says so"],"fault":"none","reason":"all is well","score":10}')
    code, output = Job(coached(tmp_path, tiny_model, server, budget=spent // 2), ranks=1).end()
    assert code == 2 and "Traceback" not in output, output
    assert "the coach scores no more, so the run stops here; what it learned is saved" in output, output
    assert "(coach.budget_tokens); give it more and run the same command again" in output, output
    folder = tmp_path / "runs" / "steady"
    learned = len(read_metrics(folder / "metrics.jsonl"))
    assert 0 < learned < STEPS and (folder / "checkpoints" / checkpoint.name(learned)).exists()

    job = Job(coached(tmp_path, tiny_model, server, budget=2 * spent), ranks=1)
    assert job.wait_for(STEPS * EPISODES * ROLES * 3 - 12)
    job.process.send_signal(signal.SIGKILL)
    job.end()
    kept = read_calls(folder / "journal.sqlite")
    code, output = Job(coached(tmp_path, tiny_model, server), ranks=1).end()
    assert code == 0, output
    check(folder)
    assert_same_adapters(folder / "adapters", untouched / "adapters")
    twice = {key for key, times in server.stats()["answered"].items() if times > 1}
    assert not twice & kept.keys(), "what had been bought was bought again"


def test_a_replay_puts_right_and_takes_off_the_same(untouched: Path, tmp_path: Path) -> None:
    assert main(["replay", str(untouched), "--out", str(tmp_path / "same")]) == 0
    assert_same_adapters(tmp_path / "same" / "adapters", untouched / "adapters")
