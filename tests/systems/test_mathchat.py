"""The turn protocol of the maths team, and one episode with real code in the sandbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mappa.systems import load_system
from mappa.systems.mathchat import MathChat
from mappa.types import ExecutionResult, Task

from ..stages import Theatre
from .protocol import CUT, PaperStage

TASK = Task(id="p", kind="maths", prompt="What is 6 times 7?", answer="42")
CODE = "```python\nprint(6 * 7)\n```"


def play(solver: str, executor: list[str], verifier: str, **more: object) -> PaperStage:
    replies = {"problem_solver": [solver], "code_executor": executor, "verifier": [verifier]}
    stage = PaperStage(TASK, replies, **more)  # type: ignore[arg-type]
    asyncio.run(MathChat().run(stage))
    return stage


def test_the_verifier_sees_the_last_code_and_its_output() -> None:
    runs = {
        "print(6 * 7)": ExecutionResult(outcome="ok", stdout="42\n"),
        "print(6 + 7)": ExecutionResult(outcome="ok", stdout="13\n"),
    }
    stage = play("<think>hm</think>It is 42.", ["```python\nprint(6 + 7)\n```", CODE, CODE], "\\boxed{42}", runs=runs)
    (verifier,) = stage.shown["verifier"]
    assert "What is 6 times 7?" in verifier and "It is 42." in verifier and "hm" not in verifier
    assert "print(6 * 7)" in verifier and "It printed:\n42" in verifier and "print(6 + 7)" not in verifier
    assert [action.role for action in stage.actions] == ["problem_solver", "code_executor", "code_executor", "verifier"]
    assert "It printed:\n13" in stage.shown["code_executor"][1]


def test_the_executor_is_done_without_code() -> None:
    stage = play("It is 42.", [CODE, "That is right."], "\\boxed{42}")
    assert "print(6 * 7)" in stage.shown["verifier"][0]
    stage = play("It is 42.", ["No need to compute."], "\\boxed{42}")
    assert "ran no code" in stage.shown["verifier"][0] and len(stage.actions) == 3


def test_what_failed_and_what_was_cut_off_is_said() -> None:
    crash = ExecutionResult(outcome="error", exit_code=1, exception="NameError: name 'n' is not defined")
    stage = play(f"<think>long{CUT}", [CODE, CODE], "42", runs={"print(6 * 7)": crash})
    (verifier,) = stage.shown["verifier"]
    assert "cut off in its reasoning" in verifier and "long" not in verifier
    assert "It ended with error: NameError" in verifier


@pytest.mark.parametrize(
    ("final", "success", "fault"),
    [
        ("So \\boxed{42}", True, None),
        ("It is 42", False, "boxed: missing"),
        ("\\boxed{41}", False, "41 is not the answer"),
    ],
)
def test_an_episode_with_real_code(
    final: str, success: bool, fault: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    theatre = Theatre(tiny_model, tmp_path)
    replies = {"problem_solver": ["It is 41."], "code_executor": [CODE, "Right."], "verifier": [final]}
    episode = theatre.play(load_system("mappa.systems.mathchat:MathChat"), TASK, replies)
    assert episode.error is None and episode.outcome is not None
    assert episode.outcome.success == success and episode.outcome.metrics == {"correct": float(success)}
    solver, computed, agreed, verifier = (action.evidence for action in episode.actions)
    assert solver is not None and not solver.success
    assert computed is not None and computed.facts["prints_answer"] is True and computed.success
    assert agreed is not None and agreed.facts["answered"] is False
    assert verifier is not None and verifier.fault == fault
