from __future__ import annotations

import math
from pathlib import Path

import pytest

from mappa.errors import JournalError, NonFiniteError
from mappa.observe.metrics import RoleMetrics, Seconds, StepMetrics, append_metrics, read_metrics


def step(number: int, score: float | None = 5.0) -> StepMetrics:
    return StepMetrics(
        step=number,
        episodes=18,
        success=0.5,
        roles={"modeler": RoleMetrics(actions=18, score=score, success=0.5)},
        tokens_generated=600,
        tokens_trained=400,
        seconds=Seconds(generate=6.0, learn=4.0),
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    assert read_metrics(path) == []
    steps = [step(1), step(2, score=None)]
    for metrics in steps:
        append_metrics(path, metrics)
    assert read_metrics(path) == steps


def test_a_step_run_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for metrics in (step(1), step(2, score=1.0), step(3), step(2, score=9.0)):
        append_metrics(path, metrics)
    assert [metrics.step for metrics in read_metrics(path)] == [1, 2, 3]
    assert read_metrics(path)[1].roles["modeler"].score == 9.0


def test_an_interrupted_line_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, step(1))
    with path.open("ab") as file:
        file.write(b'{"step":2,"epi')
    assert read_metrics(path) == [step(1)]
    append_metrics(path, step(2))
    assert read_metrics(path) == [step(1), step(2)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, step(1))
    path.write_bytes(b'{"step": "one"}\n' + path.read_bytes())
    with pytest.raises(JournalError, match=r"metrics.jsonl:1 .*\$.step"):
        read_metrics(path)


def test_non_finite_numbers_are_refused() -> None:
    with pytest.raises(NonFiniteError, match=r"RoleMetrics.kl is nan"):
        RoleMetrics(actions=1, kl=math.nan)
    with pytest.raises(NonFiniteError, match=r"StepMetrics.success is inf"):
        StepMetrics(step=1, episodes=1, success=math.inf)


def test_speed_is_over_the_whole_step() -> None:
    assert step(1).seconds.total == 10.0
    assert step(1).tokens_per_second == 100.0
    assert StepMetrics(step=1, episodes=0).tokens_per_second == 0.0
