"""A simulated coach with a planted bias of one point is found within five steps of 96 actions; one without is not."""

from __future__ import annotations

import random

from mappa.coach.monitor import Monitor, Reading


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


def alarmed(seed: int, bias: float) -> tuple[bool, float]:
    """Whether a gap was found within five steps, and the difference that the offsets would take out."""
    monitor = Monitor(0.05)
    found = [alarm for readings in steps(seed, bias) for alarm in monitor.observe(readings)]
    offsets = monitor.offsets()
    difference = offsets["modeler", "regression"] - offsets["modeler", "classification"]
    return any(alarm.about == "gap" for alarm in found), difference


def test_a_planted_bias_is_found_and_taken_out() -> None:
    results = [alarmed(seed, 1.0) for seed in range(12)]
    assert all(found for found, _ in results)
    assert abs(sum(1.0 - taken for _, taken in results) / 12) / 2.2 < 0.1, "of a standard deviation of the scores"


def test_without_a_bias_nothing_is_found_or_changed() -> None:
    results = [alarmed(seed, 0.0) for seed in range(12)]
    assert sum(found for found, _ in results) <= 2
    assert abs(sum(taken for _, taken in results) / 12) / 2.2 < 0.05


def test_drift_of_the_coach_is_told_from_the_policy() -> None:
    monitor = Monitor(0.05)
    (first, *_) = steps(1, 0.0)
    monitor.observe(first)
    monitor.anchor({f"a{n}": 5.0 for n in range(24)})
    drift = monitor.anchor({f"a{n}": 6.0 + 0.1 * (n % 3) for n in range(24)})
    assert drift is not None and abs(drift.coach - 1.1) < 0.01 and drift.p < 1e-6
    assert any(alarm.about == "drift" for alarm in monitor.observe(first))
