"""A simulated coach with a planted bias of one point is found within five steps of 96 actions; one without is not."""

from __future__ import annotations

import random
import re
from math import comb
from statistics import fmean

import pytest
from msgspec.structs import replace

from mappa.coach.monitor import EXPECTED_MISSING, Monitor, Reading, _binomial_tail

SPREAD = 2.2
"""Standard deviation of these scores."""


def steps(seed: int, bias: float, count: int = 5) -> list[list[Reading]]:
    rng = random.Random(seed)
    task_effect = {f"{kind}{n}": rng.gauss(0, 0.3) for kind in ("regression", "classification") for n in range(16)}
    return [[reading(rng, step, bias, task_effect) for _ in range(96)] for step in range(count)]


def reading(rng: random.Random, step: int, bias: float, task_effect: dict[str, float]) -> Reading:
    kind = rng.choice(("regression", "classification"))
    task = f"{kind}{rng.randrange(16)}"
    quality = rng.betavariate(2.2 if kind == "regression" else 1.5, 1.5)  # one kind is easier: no bias in itself
    score = 1 + 7 * quality + rng.gauss(0, 1.2) + task_effect[task] + bias * (kind == "regression")
    return Reading(
        step=step, role="modeler", kind=kind, task=task, score=min(10.0, max(0.0, score)), quality=quality,
        success=quality > 0.4,
    )  # fmt: skip


def alarmed(seed: int, bias: float) -> tuple[set[str], float]:
    """What was alarmed about within five steps, and the difference that the offsets would take out."""
    monitor = Monitor(0.05)
    found = [alarm for readings in steps(seed, bias) for alarm in monitor.observe(readings)]
    offsets = monitor.offsets()
    difference = offsets["modeler", "regression"] - offsets["modeler", "classification"]
    return {alarm.about for alarm in found}, difference


def test_a_planted_bias_is_found_and_taken_out() -> None:
    results = [alarmed(seed, 1.0) for seed in range(100)]
    assert sum("gap" in about for about, _ in results) >= 97
    assert abs(fmean(1.0 - taken for _, taken in results)) / SPREAD < 0.1


def test_without_a_bias_nothing_is_found_or_changed() -> None:
    results = [alarmed(seed, 0.0) for seed in range(1000, 1100)]
    assert sum(bool(about) for about, _ in results) <= 5
    assert abs(fmean(taken for _, taken in results)) / SPREAD < 0.02
    assert sum(abs(taken) / SPREAD > 0.1 for _, taken in results) <= 5


def test_an_alarm_says_between_what_the_gap_lies() -> None:
    monitor = Monitor(0.05)
    alarms = [a for readings in steps(3, 1.0) for a in monitor.observe(readings) if a.about == "gap"]
    low, high = map(float, re.findall(r"interval (\S+) to (\S+)\)", alarms[-1].text)[0])
    assert low < alarms[-1].size < high < -0.2, "classification against regression, which is favoured by a point"


def test_few_readings_of_one_action_show_how_far_a_score_can_be_trusted() -> None:
    rng, monitor = random.Random(5), Monitor(0.05)
    for _ in range(400):
        monitor.repeated(rng.gauss(6, 0.5), rng.gauss(6, 0.5))
    assert monitor.repeat_spread is not None and abs(monitor.repeat_spread - 0.5) < 0.06


def test_a_coach_that_is_blind_or_silent_is_seen() -> None:
    rng = random.Random(7)
    (first, *_), monitor = steps(2, 0.0), Monitor(0.05)
    blind = [[replace(r, score=rng.uniform(0, 10)) for r in readings] for readings in steps(2, 0.0, 12)]
    assert {a.about for readings in blind for a in monitor.observe(readings)} == {"blind"}
    silent = [replace(r, score=None if rng.random() < 0.3 else r.score) for r in first]
    assert {a.about for a in Monitor(0.05).observe(silent)} == {"missing"}


@pytest.mark.parametrize(
    ("count", "n"), [(0, 5), (1, 1), (3, 3), (2, 96), (20, 96), (60, 200), (256, 2048), (2048, 2048)]
)
def test_how_likely_so_many_missing_scores_are(count: int, n: int) -> None:
    share, whole = EXPECTED_MISSING.as_integer_ratio()  # whole numbers: fractions would take a minute to reduce
    exact = sum(comb(n, k) * share**k * (whole - share) ** (n - k) for k in range(count, n + 1)) / whole**n
    assert _binomial_tail(count, n, EXPECTED_MISSING) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("actions", "missing"), [(1200, 300), (2048, 256), (2048, 2048), (4096, 160)])
def test_a_large_step_with_many_missing_scores_is_an_alarm_and_no_crash(actions: int, missing: int) -> None:
    readings = [
        Reading(
            step=1, role="modeler", kind="k", task="t", score=None if n < missing else 5.0, quality=0.5, success=True
        )
        for n in range(actions)
    ]
    assert {alarm.about for alarm in Monitor(0.05).observe(readings)} == {"missing"}


def test_drift_of_the_coach_is_told_from_the_policy() -> None:
    monitor = Monitor(0.05)
    (first, *_) = steps(1, 0.0)
    monitor.observe(first)
    monitor.anchor({f"a{n}": 5.0 for n in range(24)})
    drift = monitor.anchor({f"a{n}": 6.0 + 0.1 * (n % 3) for n in range(24)})
    assert drift is not None and abs(drift.coach - 1.1) < 0.01 and drift.p < 1e-6
    assert any(alarm.about == "drift" for alarm in monitor.observe(first))
