"""The turn protocol of the paper's data-science team, rule by rule, and one episode with real code in the sandbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from mappa.config import SandboxConfig
from mappa.systems import load_system
from mappa.systems.datascience import _fit, _prepare, _submit
from mappa.systems.dsbench import ANALYST, ENGINEER, LONGEST_CONTEXT, MODELER, TURNS, DSBench, briefing, take_turns
from mappa.tasks import prepare
from mappa.types import ExecutionResult, Metric, Role, Task

from ..stages import Theatre, last
from ..tasks.conftest import write_task
from .protocol import CUT, PaperStage

METRIC = Metric(name="auc", greater_is_better=True, baseline=0.5, reference=0.9)
TASK = Task(
    id="loans",
    kind="classification",
    prompt="Who pays back?",
    folder="/x",
    target="paid",
    id_column="row",
    metric=METRIC,
)
CODE = "```python\nx = 1\n```"
DONE = "All done. <summary>kept 4 columns</summary>"


def play_role(replies: list[str], role: Role = ENGINEER, **more: object) -> tuple[PaperStage, str]:
    stage = PaperStage(TASK, {role.name: replies}, **more)  # type: ignore[arg-type]
    return stage, asyncio.run(take_turns(stage, role, "Go."))


def test_an_action_without_code_ends_the_role() -> None:
    stage, summary = play_role([CODE, DONE, CODE])
    assert len(stage.actions) == 2 and summary == "kept 4 columns"
    assert stage.went_on == [False, True], "the second turn goes on from the first"


def test_it_ends_even_if_files_are_missing() -> None:
    stage, summary = play_role(["I cannot do this."])
    assert len(stage.actions) == 1 and summary == ""


def test_a_role_has_four_turns() -> None:
    stage, _ = play_role([CODE] * (TURNS + 1))
    assert len(stage.actions) == TURNS == 4
    assert "Answers left: 3." in stage.shown["data_engineer"][1]
    assert "This is your last answer." in stage.shown["data_engineer"][3]


def test_several_blocks_are_one_program_in_their_order() -> None:
    text = "First\n```python\na = 1\n```\nthen\n```py\nb = a\n```\nand\n```text\nnot code\n```\n```\nneither\n```"
    stage, _ = play_role([text, DONE])
    assert stage.programs == ["a = 1\n\nb = a"]


def test_code_in_the_reasoning_is_not_run() -> None:
    stage, _ = play_role([f"<think>maybe {CODE}</think>Nothing to do. <summary>none</summary>"])
    assert stage.programs == [] and len(stage.actions) == 1


def test_a_block_that_was_never_closed_is_not_run() -> None:
    stage, _ = play_role([f"```python\na = 1\n```\n```python\nb = {CUT}", DONE])
    assert stage.programs == ["a = 1"]
    stage, _ = play_role([f"```python\nb = {CUT}", DONE])
    assert stage.programs == []
    assert "cut off before a code block was closed" in stage.shown["data_engineer"][1]


def test_reasoning_that_was_cut_off_spends_a_turn_and_is_not_the_end() -> None:
    stage, _ = play_role([f"<think>let me see{CUT}", f"<think>again{CUT}", CODE, DONE])
    assert len(stage.actions) == 4
    assert "cut off in your reasoning" in stage.shown["data_engineer"][1]
    stage, _ = play_role([f"<think>on and on{CUT}"] * 9)
    assert len(stage.actions) == TURNS


def test_what_the_code_did_is_told() -> None:
    crash = ExecutionResult(
        outcome="error", exit_code=1, exception="KeyError: 'paid'", exception_line=3, stdout="a" * 9000, stderr="Trace"
    )
    made = ExecutionResult(outcome="ok", created={"X_train.pkl": 4096, "y_train.pkl": 99, "X_test.pkl": 4096})
    stage, _ = play_role([CODE, "```python\ny = 2\n```", DONE], runs={"x = 1": crash, "y = 2": made})
    _, first, second = stage.shown["data_engineer"]
    assert "Your code failed: KeyError: 'paid' (line 3)." in first and "characters left out" in first
    assert "Still missing: X_train.pkl, y_train.pkl, X_test.pkl." in first and "stderr:\nTrace" in first
    assert "ran to its end" in second and "X_test.pkl (4 KiB)" in second and "All your files are there." in second
    for outcome in ("timeout", "memory", "killed", "output-limit"):
        stage, _ = play_role([CODE, DONE], runs={"x = 1": ExecutionResult(outcome=outcome)})
        assert "Your code was stopped" in stage.shown["data_engineer"][1]


def test_a_conversation_that_has_grown_too_long_gets_no_further_turn() -> None:
    class LongStage(PaperStage):
        async def act(self, *given, **named):  # type: ignore[no-untyped-def]
            return replace(await super().act(*given, **named), prompt_ids=(1,) * LONGEST_CONTEXT)

    stage = LongStage(TASK, {"data_engineer": [CODE, CODE]})
    asyncio.run(take_turns(stage, ENGINEER, "Go."))
    assert len(stage.actions) == 1


def test_the_briefing_says_what_is_asked_and_what_is_missing() -> None:
    text = briefing(TASK, MODELER, {"data_engineer": "kept 4 columns"}, {"train.csv": 2048, "X_train.pkl": 10})
    assert "Who pays back?" in text and "Target column: paid (classification). Id column: row." in text
    assert "Measured by auc: higher is better." in text
    assert "From the Data Engineer:\nkept 4 columns" in text
    assert "WARNING: y_train.pkl missing." in text and "X_train.pkl (1 KiB)" in text
    assert "WARNING" not in briefing(TASK, MODELER, {}, {"X_train.pkl": 1, "y_train.pkl": 1})
    assert "The Modeler left no summary." in briefing(TASK, ANALYST, {"modeler": ""}, {})


def test_summaries_reach_every_later_role_and_reasoning_none() -> None:
    replies = {
        "data_engineer": [f"<think>secret <summary>no</summary></think>{DONE}"],
        "modeler": ["<summary>a forest, AUC 0.8</summary>"],
        "analyst": ["It is written."],
    }
    stage = PaperStage(TASK, replies)
    asyncio.run(DSBench().run(stage))
    (analyst,) = stage.shown["analyst"]
    assert "kept 4 columns" in analyst and "a forest, AUC 0.8" in analyst and "secret" not in analyst
    assert "WARNING: model.pkl, X_test.pkl missing." in analyst
    assert stage.went_on == [False, False, False], "every role begins a conversation of its own"


@pytest.fixture
def theatre(tiny_model: Path, tmp_path: Path) -> Theatre:
    return Theatre(tiny_model, tmp_path)


def test_an_episode_with_real_code(theatre: Theatre, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks" / "train" / "shop")
    write_task(tmp_path / "tasks" / "heldout" / "stall")
    (task,) = prepare(str(tmp_path / "tasks"), tmp_path).train
    looking = "<think>look first</think>```python\nimport pandas as pd\nprint(pd.read_csv('train.csv').shape)\n```"
    replies = {
        "data_engineer": [looking, f"Now save.\n{_prepare('price')}", DONE],
        "modeler": [_fit("regression", "RandomForestRegressor"), "<summary>a forest</summary>"],
        "analyst": [_submit("price"), "<summary>written</summary>"],
    }
    team = load_system("mappa.systems.dsbench:DSBench")
    episode = theatre.play(team, task, replies, sandbox=SandboxConfig())
    assert episode.error is None, episode.error
    assert [(a.role, a.turn) for a in episode.actions] == [
        ("data_engineer", 0), ("data_engineer", 1), ("data_engineer", 2),
        ("modeler", 0), ("modeler", 1), ("analyst", 0), ("analyst", 1),
    ]  # fmt: skip
    assert "stdout:\n(6, 4)" in theatre.sampler.prompts["data_engineer"][1]
    assert "look first" in theatre.sampler.prompts["data_engineer"][2], "a role keeps its own reasoning"
    engineer = last(episode, "data_engineer")
    assert engineer.evidence is not None and engineer.evidence.success, engineer.evidence
    assert engineer.execution is None
    assert episode.outcome is not None
    assert episode.outcome.metrics["rmse"] == episode.outcome.metrics["score"] > 0
    assert episode.outcome.metrics["rmse_of_range"] == pytest.approx(episode.outcome.metrics["rmse"] / 20)
