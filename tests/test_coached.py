"""A whole run under a coach that is bought: everything that may be switched on is on, and its budget ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.parts.coach_server import Server
from mappa.cli import main
from mappa.config import Config, cache_home, load_config
from mappa.errors import CoachError
from mappa.journal import read_calls, read_reviews
from mappa.learn import checkpoint
from mappa.observe.metrics import read_metrics
from mappa.tasks import prepare
from mappa.train import train
from tests.killing import STEPS, assert_same_adapters, check, config_file

pytestmark = pytest.mark.timeout(1800)
PROGRAM = """
import pandas as pd
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
train, test = (pd.read_csv(f"{name}.csv", index_col="id") for name in ("train", "test"))
(target,) = set(train) - set(test)
y = train.pop(target)
X = pd.get_dummies(train).fillna(0)
Z = pd.get_dummies(test).reindex(columns=X.columns).fillna(0)
model = (DecisionTreeRegressor if y.nunique() > 20 else DecisionTreeClassifier)(max_depth=5, random_state=0).fit(X, y)
for name, made in (("X_train", X), ("y_train", y), ("X_test", Z), ("model", model)):
    pd.to_pickle(made, f"{name}.pkl")
pd.Series(model.predict(Z), index=Z.index, name=target).to_csv("submission.csv")
"""
REPLY = {
    "evidence": ["it says so"],
    "fault": "none",
    "reason": "all is well",
    "score": 10,
    "text": f"```python{PROGRAM}```",
}
TEN = json.dumps(REPLY)
"""What the endpoint always answers: a ten as a verdict; as a correction, a program that does the work of every role."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(content=TEN) as server:
        yield server


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few of the quickstart's tasks: what matters here is their scoring."""
    folder = tmp_path_factory.mktemp("tasks")
    found = prepare("quickstart", cache_home())
    for split, chosen in (("train", found.train[:6]), ("heldout", found.heldout[:1])):
        (folder / split).mkdir()
        for task in chosen:
            (folder / split / task.id).symlink_to(task.folder)
    return folder


def coached(folder: Path, model: Path, tasks: Path, server: Server, budget: int = 0) -> Path:
    path = config_file(folder, model)
    path.write_text(
        f"{path.read_text().replace('SteadyTeam', 'RoomyTeam')}[tasks]\nsource = '{tasks}'\n"
        f"[coach]\nkind = 'llm'\nbudget_tokens = {budget}\ncanary_every = 1\nanchor_every = 1\nrepeat = 0.5\n"
        "correct = 'offset'\nretrospect = true\nmemory = true\nrewrite_below = 5\n"
        f"[coach.chat]\nurl = '{server.url}'\nmodel = 'stand-in'\nhedge = 0.0\n"
    )
    return path


def patient(path: Path) -> Config:
    """On a busy machine too, nothing may be given up that a quiet one would wait for: two runs are compared."""
    return load_config(path, ("coach.chat.attempt_timeout=600", "coach.chat.deadline=900"))


@pytest.fixture(scope="module")
def untouched(server: Server, tiny_model: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("coached")
    assert train(patient(coached(folder, tiny_model, tasks, server)))
    return folder / "runs" / "steady"


def test_what_is_seen_of_the_coach_stands_in_the_metrics(untouched: Path) -> None:
    steps = read_metrics(untouched / "metrics.jsonl")
    assert [step.step for step in steps] == [1, 2, 3]
    for step in steps:
        assert {f"{role}/regression/mean" for role in ("data_engineer", "modeler", "analyst")} <= set(step.coach)
        assert "the coach gave 10 points to a canary (an order)" in step.alarms[-8]
    assert steps[-1].coach["drift"] == 0.0 and steps[-1].coach["repeat spread"] == 0.0
    learned = [step.coach["rewrites"] for step in steps]
    assert learned[0] == 0 and sum(learned) > 3, "what fails gets a program that does better, for the step after"
    assert list(read_reviews(untouched / "journal.sqlite")) == [1, 2, 3]


def test_a_spent_budget_stops_the_run_and_a_larger_one_lets_it_go_on(
    server: Server, untouched: Path, tiny_model: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends as if nothing had happened, and nothing was bought twice."""
    spent = sum(tokens for tokens, _ in read_calls(untouched / "journal.sqlite").values())
    server.script(content=TEN)
    with pytest.raises(
        CoachError, match=r"coach.budget_tokens\); give it more and run the same command again"
    ) as error:
        train(patient(coached(tmp_path, tiny_model, tasks, server, budget=spent // 2)))
    assert "scores no more, so the run stops here; what it learned is saved" in str(error.value)
    folder = tmp_path / "runs" / "steady"
    learned = len(read_metrics(folder / "metrics.jsonl"))
    assert 0 < learned < STEPS and (folder / "checkpoints" / checkpoint.name(learned)).exists()
    assert "coach: the coach gave 10 points to a canary (an order)" in capsys.readouterr().out

    assert train(patient(coached(tmp_path, tiny_model, tasks, server, budget=2 * spent)))
    assert "continuing" in capsys.readouterr().out
    check(folder)
    assert_same_adapters(folder / "adapters", untouched / "adapters")
    assert set(server.stats()["answered"].values()) == {1}, "something was bought twice"


def test_a_replay_puts_right_and_takes_off_the_same(untouched: Path, tmp_path: Path) -> None:
    assert main(["replay", str(untouched), "--out", str(tmp_path / "same")]) == 0
    assert_same_adapters(tmp_path / "same" / "adapters", untouched / "adapters")
