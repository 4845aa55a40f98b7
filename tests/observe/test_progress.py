from __future__ import annotations

import io

import pytest
from rich.console import Console

from mappa.observe.metrics import RoleMetrics, Seconds, StepMetrics
from mappa.observe.progress import Progress, duration, trend

ROLES = ("data_engineer", "modeler")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def step(number: int, *, lost: int = 0) -> StepMetrics:
    return StepMetrics(
        step=number,
        episodes=18,
        lost=lost,
        success=0.39,
        roles={
            "data_engineer": RoleMetrics(actions=18, score=7.25, success=0.72, distinct=1.0, tokens=120, kl=0.01),
            "modeler": RoleMetrics(actions=18),
        },
        tokens_generated=5000,
        tokens_trained=1000,
        seconds=Seconds(generate=38.0, execute=3.0, learn=19.0),
    )


def screen(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=110, color_system=None), file


def test_plain_prints_one_line_per_step() -> None:
    console, file = screen(terminal=False)
    with Progress(3, ROLES, console=console) as progress:
        for number in (1, 2):
            progress.phase("rollout", total=18)
            progress.advance(18)
            progress.step_done(step(number))
    assert file.getvalue().splitlines() == [
        "step 1/3 | success 39 % | data_engineer 7.2 (72 %) | modeler - (-) | 100 tok/s | 60 s | ETA 2 min",
        "step 2/3 | success 39 % | data_engineer 7.2 (72 %) | modeler - (-) | 100 tok/s | 60 s | ETA 60 s",
    ]


def test_a_long_phase_is_not_silent() -> None:
    console, file = screen(terminal=False)
    clock = Clock()
    with Progress(3, ROLES, console=console, clock=clock) as progress:
        progress.phase("evaluating the base", total=80)
        for _ in range(8):
            clock.now += 10
            progress.advance(4)
    assert file.getvalue().splitlines() == ["evaluating the base 12/80, 30 s", "evaluating the base 24/80, 60 s"]


def test_eta_counts_what_is_left_of_a_resumed_run() -> None:
    with Progress(10, ROLES, plain=True, done=6, console=screen(terminal=False)[0]) as progress:
        assert progress.eta() is None
        progress.step_done(step(7))
        assert progress.eta() == 180.0


def test_lost_episodes_are_shown() -> None:
    console, file = screen(terminal=False)
    with Progress(1, ROLES, console=console) as progress:
        progress.step_done(step(1, lost=2))
        progress.note("adapters written to runs/quickstart/adapters")
    assert "2 of 18 episodes lost" in file.getvalue()
    assert "adapters written" in file.getvalue()


def test_live_display_shows_roles_phase_and_speed() -> None:
    console, file = screen(terminal=True)
    with Progress(3, ROLES, console=console) as progress:
        progress.step_done(step(1))
        progress.phase("rollout", total=18)
        progress.advance(7)
    shown = file.getvalue()
    for expected in ("rollout", "7/18", "1/3", "ETA 2 min", "data_engineer", "7.2", "▆", "100 tok/s", "generate 38 s"):
        assert expected in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (99.4, "99 s"), (100, "2 min"), (3570, "1 h 00 min"), (3900, "1 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_trend() -> None:
    assert trend([0, 5, None, 10]) == "▁▅ █"
