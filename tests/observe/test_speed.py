from __future__ import annotations

import pytest

from mappa.observe.metrics import Seconds, StepMetrics
from mappa.observe.speed import Speed, speed_of, speed_text


def test_rates_are_over_their_own_phase() -> None:
    steps = [
        StepMetrics(
            step=number,
            episodes=18,
            tokens_generated=3000,
            tokens_trained=2000,
            tokens_computed=9000,
            seconds=Seconds(generate=30.0, execute=5.0, learn=20.0, other=5.0),
        )
        for number in (1, 2)
    ]
    speed = speed_of(steps)
    assert (speed.generated_per_second, speed.trained_per_second, speed.computed_per_second) == (100.0, 100.0, 450.0)
    assert sum(speed.shares.values()) == pytest.approx(1.0)
    assert speed.shares["generate"] == 0.5
    assert speed_text(speed).splitlines() == [
        "generation 100 tok/s; learning 100 action tok/s, 450 tok/s with their contexts",
        "share of a step: generate 50 %, execute 8 %, coach 0 %, learn 33 %, publish 0 %, other 8 %",
    ]


def test_no_steps_no_speed() -> None:
    assert speed_of([]) == Speed()
    assert "no step was taken" in speed_text(Speed())
