from __future__ import annotations

import json

import pytest

from mappa.journal import Span
from mappa.observe.timeline import chrome_trace, merge, rollout_metrics, rollout_text, total, without
from mappa.types import Action, Episode

SPANS = [
    Span("queue", "3-0", "solver", 0, 0.0, 1.0),
    Span("generate", "3-0", "solver", 0, 1.0, 5.0),
    Span("generate", "3-1", "solver", 0, 3.0, 6.0),
    Span("tool", "3-0", "solver", 0, 5.0, 9.0),
    Span("coach", "3-0", "solver", 0, 8.0, 12.0),
    Span("learn", "", "", 0, 12.0, 20.0),
    Span("generate", "4-0", "solver", 0, 15.0, 99.0),  # still under way when the step ends
]


def action(version: int) -> Action:
    return Action(
        role="solver", turn=0, adapter=f"solver@{version}", prompt_ids=(1,), output_ids=(2,), logprobs=(-0.1,),
        finish_reason="stop", text="",
    )  # fmt: skip


def test_shares_of_a_step() -> None:
    episode = Episode(id="3-0", task="t", kind="k", seed=0, step=3, actions=(action(2), action(2), action(1)))
    metrics = rollout_metrics(SPANS, 0.0, 20.0, [episode], lag=0.003)
    assert metrics.busy == pytest.approx((5 + 5) / 20)  # 1 to 6 and 15 to 20
    assert metrics.overlap == pytest.approx((1 + 5) / (7 + 8))  # of 5 to 12 and 12 to 20
    assert metrics.wait_sandbox == pytest.approx(9 - 6)
    assert metrics.wait_coach == pytest.approx(12 - 9)
    assert metrics.wait_learner == pytest.approx(15 - 12)
    assert metrics.staleness == {0: 2, 1: 1}
    assert rollout_text(metrics) == (
        "serving 50 % busy | 40 % of sandbox, coach and learner behind it | waited for coach 3.0 s, sandbox 3.0 s, "
        "learner 3.0 s | staleness 0: 2, 1: 1 | loop lag 3 ms"
    )


def test_a_step_in_which_nothing_happened() -> None:
    metrics = rollout_metrics([], 5.0, 5.0, [])
    assert (metrics.busy, metrics.overlap, metrics.staleness) == (0.0, 0.0, {})


def test_intervals() -> None:
    assert merge([(4, 6), (1, 2), (2, 3), (5, 5.5)]) == [(1, 3), (4, 6)]
    assert without([(0, 10)], [(1, 2), (4, 6), (9, 12)]) == [(0, 1), (2, 4), (6, 9)]
    assert without([(0, 1), (2, 3)], [(0.5, 2.5)]) == [(0, 0.5), (2.5, 3)]
    assert without([(0, 1)], []) == [(0, 1)] and total([(0, 1), (3, 5)]) == 3


def test_the_trace_has_a_process_per_episode_and_a_track_per_role_and_kind() -> None:
    events = json.loads(chrome_trace(SPANS))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(names.values()) == ["3-0", "3-1", "4-0", "run"]
    (tool,) = (event for event in events if event["ph"] == "X" and event["name"] == "tool")
    assert (names[tool["pid"]], tool["ts"], tool["dur"], tool["cat"]) == ("3-0", 5_000_000, 4_000_000, "solver")
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads[tool["pid"], tool["tid"]] == "solver tool"
