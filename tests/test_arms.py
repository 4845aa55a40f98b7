"""The results program: its arms are configs, and what it says of runs is right, on runs written down by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.arms import ARMS, SECOND
from bench.parts.arms_numbers import by_task, curve, halfway, record, rollouts_to, rows
from bench.parts.arms_page import WORDS, write_page
from bench.parts.arms_runs import Done
from mappa.coach import check_roles
from mappa.config import load_config
from mappa.observe.evaluation import EvaluationResult
from mappa.systems import adapters_of, team_of

TASKS = tuple(f"t{index}" for index in range(10))
QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart.toml"


def measured(success: float) -> EvaluationResult:
    return EvaluationResult(
        mode="sampled", success=success, ci=(0.0, 1.0), roles={}, tasks=dict.fromkeys(TASKS, success),
        metric_mean=None, episodes=40, lost=0,
    )  # fmt: skip


def arm(name: str, *curve: float) -> list[Done]:
    """Two seeds alike, measured every 32 episodes."""
    points = tuple((32 * place, measured(success)) for place, success in enumerate(curve))
    return [
        Done(arm=name, seed=seed, curve=points, training=(0.5,), training_minutes=20.0, cpu_minutes=50.0)
        for seed in (0, 1)
    ]


def test_every_arm_is_a_config_and_has_words() -> None:
    for name, overrides in ARMS.items():
        config = load_config(QUICKSTART, overrides)
        own = ("data_engineer", "modeler", "analyst")
        assert adapters_of(team_of(config)) == (("team",) if name == "shared" else own)
        assert name in WORDS
    second = load_config(QUICKSTART, [*SECOND, "learn.start=x"])
    team = team_of(second)
    check_roles(second.coach, team.roles)
    assert adapters_of(team)[-1] == "reporter"


def test_seeds_are_pooled_by_task() -> None:
    runs = arm("process", 0.0, 0.75)
    assert by_task([run.trained for run in runs]) == [[True] * 3 + [False] + [True] * 3 + [False]] * 10
    (start, base), (end, trained) = curve(runs)
    assert (start, end, base[0], trained[0]) == (0, 32, 0.0, 0.75)
    assert base[2] > 0 and trained[1] < 0.75 < trained[2], "Wilson's interval over 80 episodes, however alike the tasks"


def test_rollouts_to_a_success_lie_between_measurements() -> None:
    points = curve(arm("process", 0.0, 0.5, 1.0))
    assert rollouts_to(points, 0.75) == 48 and rollouts_to(points, 0.0) == 0
    assert rollouts_to(curve(arm("outcome", 0.0, 0.25)), 0.3) is None


@pytest.mark.parametrize(
    ("process", "outcome", "shuffled", "met"),
    [
        ((0.0, 1.0), (0.0, 0.25, 0.5), (0.0, 0.0), [True, True, True]),
        ((0.0, 1.0), (0.0, 0.75, 0.75), (0.25, 0.75), [True, False, False]),
        ((0.0, 0.5, 1.0), (0.0, 0.25), (0.0, 0.0), [True, True, True]),
        ((0.25, 0.5), (0.0, 0.25), (0.0, 0.0), [False, True, True]),
        ((0.25, 0.0), (0.0, 0.25), (0.0, 0.0), [False, True]),
    ],
)
def test_goals(process, outcome, shuffled, met) -> None:
    arms = {
        "process": arm("process", *process), "outcome": arm("outcome", *outcome), "shuffled": arm("shuffled", *shuffled)
    }  # fmt: skip
    assert [row.met for row in rows(arms)] == met


def test_the_page_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    env = {"cores": 2, "cpu": "a CPU"}
    nothing = {"env": env, "rows": [], "halfway": None, "arms": {}, "forgetting": {}}
    write_page(tmp_path / "results.md", nothing, {})
    assert "No run is done yet." in (tmp_path / "results.md").read_text()
    arms = {"process": arm("process", 0.0, 1.0), "outcome": arm("outcome", 0.0, 0.25), "team": []}
    found = nothing | {"halfway": halfway(arms), "arms": record(arms), "rows": [row.__dict__ for row in rows(arms)]}
    one = {
        "before": [0.5, 0.4, 0.6],
        "after": [0.5, 0.4, 0.6],
        "bitwise the same": True,
        "newcomer": [[0.5, 0.4, 0.6]] * 2,
    }
    write_page(tmp_path / "results.md", found | {"forgetting": {"process": {0: one}}}, arms)
    page = (tmp_path / "results.md").read_text()
    assert "| -75 [-75, -75], p = 0.002 |" in page and "| seed 1 | 0 | 100 | 25 |" in page
    assert f"| {WORDS['process']} | 2 | 0 % [0, 5] | 100 % [95, 100] |" in page and "| never |" in page
    assert "outcome-only never came to 50 %" in page and "| one per role | 0 | 50 % [40, 60] |" in page
    assert "| held-out success, % | base | process | outcome |" in page and "| t0 | 0 | 100 | 25 |" in page
    assert "| success, % | 50.0 | 66.7 | 0.0 | 100.0 |" in page and "| F1, fair | 0.126 | 0.174 | - | - |" in page
    assert (tmp_path / "results.png").stat().st_size > 10_000
