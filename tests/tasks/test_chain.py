"""The team's own worked examples, run in the real sandbox, measured, and scored by the rubric coach."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from mappa.coach import ActionContext, RubricCoach
from mappa.config import SandboxConfig
from mappa.errors import TaskError
from mappa.sandbox import Sandbox
from mappa.systems import python_block
from mappa.systems.datascience import ANALYST, ENGINEER, MODELER
from mappa.tasks import TaskSet, inspect, outcome, populate, repair
from mappa.types import Action, Outcome, Role, Task

from .team import task_named

TEAM = (ENGINEER, MODELER, ANALYST)


def example(role: Role, task: Task) -> str:
    """The role's worked example for a task of this kind, with this task's target."""
    asked, answered = next(pair for pair in role.examples if f"({task.kind})" in pair[0])
    code = python_block(answered)
    assert code is not None
    return code.replace(asked.split()[1], task.target)


async def play(task: Task, sandbox: Sandbox, code: Mapping[str, str | None]) -> tuple[dict[str, Action], Outcome]:
    """One episode without a model: every role does what its worked example shows, unless `code` says otherwise."""
    workspace = await sandbox.workspace()
    populate(task, workspace)
    actions: dict[str, Action] = {}
    repaired = False
    for role in TEAM:
        text = code.get(role.name, example(role, task))
        execution = None if text is None else await workspace.run(text)
        evidence = await inspect(task, role, workspace, sandbox.workspace)
        action = Action(
            role=role.name, turn=0, adapter="none@0", prompt_ids=(1,), output_ids=(2,), logprobs=(0.0,),
            finish_reason="stop", text=text or "", execution=execution, evidence=evidence, repaired=repaired,
        )  # fmt: skip
        upstream = {name: past.evidence.success for name, past in actions.items() if past.evidence is not None}
        context = ActionContext(task=task, role=role, action=action, files=workspace.files(), upstream=upstream)
        actions[role.name] = replace(action, verdict=await RubricCoach().score(context))
        if not evidence.success:
            repair(task, workspace, role.produces)
            repaired = True
    workspace.close()
    return actions, outcome(task, list(actions.values()))


async def play_all(
    tasks: tuple[Task, ...], *codes: Mapping[str, str | None]
) -> list[tuple[dict[str, Action], Outcome]]:
    async with Sandbox.open(SandboxConfig()) as sandbox:
        return await asyncio.gather(*(play(task, sandbox, code) for task in tasks for code in codes or ({},)))


def scores(actions: Mapping[str, Action]) -> tuple[float | None, ...]:
    return tuple(action.verdict.score for action in actions.values() if action.verdict is not None)


def check_worked_examples(tasks: tuple[Task, ...]) -> None:
    for task, (actions, result) in zip(tasks, asyncio.run(play_all(tasks)), strict=True):
        assert result.success, (task.id, [action.evidence for action in actions.values()])
        assert result.metrics["normalised"] > 0.2, task.id
        engineer, modeler, analyst = scores(actions)
        assert engineer == 10, task.id
        assert min(modeler or 0, analyst or 0) > 7, task.id


def test_the_worked_examples_succeed(quickstart: TaskSet) -> None:
    check_worked_examples((quickstart.train + quickstart.heldout)[::4])


PUBLISHED = {"penguins": (10.0, 8.71, 9.14), "fgl": (10.0, 8.82, 9.21), "solder": (10.0, 8.3, 8.87)}
"""What a chain with a weak model was worth when the quickstart's published seeds were run."""


def test_the_quickstart_is_rewarded_as_in_its_published_runs(quickstart: TaskSet) -> None:
    """Whatever else its graders come to measure (accuracy, F1 ...)."""
    for name, expected in PUBLISHED.items():
        task = task_named(quickstart, name)
        model = example(MODELER, task).replace("().fit", "(n_estimators=3, max_depth=2, random_state=0).fit")
        ((actions, _),) = asyncio.run(play_all((task,), {"modeler": model}))
        assert scores(actions) == pytest.approx(expected, abs=0.02), name


@pytest.mark.slow
def test_the_worked_examples_succeed_on_every_task(quickstart: TaskSet) -> None:
    check_worked_examples(quickstart.train + quickstart.heldout)


IMPORT = "import pandas as pd\n"
PENGUINS = {
    "no code": ("data_engineer", None, "X_train.pkl missing", 0.0),
    "syntax": ("data_engineer", "import pandas as\n", "X_train.pkl missing", 0.0),
    "prints only": ("data_engineer", "print('saved X_train.pkl')", "X_train.pkl missing", 2.0),
    "case of the target": (
        "data_engineer",
        IMPORT + "train = pd.read_csv('train.csv')\ny = train.pop('Species')",
        "X_train.pkl missing",
        0.0,
    ),
    "a link for a file": (
        "data_engineer",
        "import os\nos.symlink('train.csv', 'X_train.pkl')",
        "X_train.pkl missing",
        2.0,
    ),
    "no test table": (
        "data_engineer",
        IMPORT + "train = pd.read_csv('train.csv', index_col='id')\ny = train.pop('species')\n"
        "pd.get_dummies(train).fillna(0).to_pickle('X_train.pkl')\ny.to_pickle('y_train.pkl')",
        "X_test.pkl missing",
        4.0,
    ),
    "text and gaps left": (
        "data_engineer",
        IMPORT
        + "train = pd.read_csv('train.csv', index_col='id')\ny = train.pop('species')\ny.to_pickle('y_train.pkl')\n"
        "train.to_pickle('X_train.pkl')\npd.read_csv('test.csv', index_col='id').to_pickle('X_test.pkl')",
        "text columns left: island, sex",
        6.0,
    ),
    "not a model": ("modeler", IMPORT + "pd.to_pickle('model', 'model.pkl')", "model.pkl holds a str", 4.0),
    "a regressor for classes": (
        "modeler",
        IMPORT + "from sklearn.ensemble import RandomForestRegressor\n"
        "RandomForestRegressor().fit(pd.read_pickle('X_train.pkl'), pd.read_pickle('y_train.pkl'))",
        "model.pkl missing",
        0.0,
    ),
    "another column": (
        "analyst",
        IMPORT + "X = pd.read_pickle('X_test.pkl')\npred = pd.read_pickle('model.pkl').predict(X)\n"
        "pd.Series(pred, index=X.index, name='Species').to_csv('submission.csv')",
        "column 'Species' is not the target 'species'",
        3.0,
    ),
    "no ids": (
        "analyst",
        IMPORT + "pred = pd.read_pickle('model.pkl').predict(pd.read_pickle('X_test.pkl'))\n"
        "pd.DataFrame({'species': pred}).to_csv('submission.csv', index=False)",
        "columns are 'species', not 'id', 'species'",
        3.0,
    ),
    "the sample as it is": (
        "analyst",
        "import shutil\nshutil.copy('sample_submission.csv', 'submission.csv')",
        "no better than the baseline",
        6.0,
    ),
}


def test_planted_faults_are_found_and_cost_their_own_role_only(quickstart: TaskSet) -> None:
    """One episode per fault: the guilty role loses, every other role is judged on its own work."""
    task = task_named(quickstart, "penguins")
    codes = [{role: code} for role, code, _, _ in PENGUINS.values()]
    for (name, (guilty, _, fault, score)), (actions, result) in zip(
        PENGUINS.items(), asyncio.run(play_all((task,), *codes)), strict=True
    ):
        assert not result.success, name
        for role, got in zip(actions, scores(actions), strict=True):
            evidence = actions[role].evidence
            assert evidence is not None
            if role == guilty:
                assert (evidence.fault or "").startswith(fault), name
                assert got == score, name
            else:
                assert evidence.success, (name, role, evidence)
                assert (got or 0) > 9, (name, role)


def test_work_that_was_saved_before_a_crash_counts(quickstart: TaskSet) -> None:
    task = task_named(quickstart, "penguins")
    code = example(ENGINEER, task) + "print(train['price'])\n"
    ((actions, result),) = asyncio.run(play_all((task,), {"data_engineer": code}))
    engineer = actions["data_engineer"]
    assert engineer.verdict is not None
    assert engineer.verdict.score == 5.0
    assert engineer.verdict.reason.startswith(
        "Crashed in line 10 with KeyError: 'price'; all that is required is there"
    )
    assert result.success, "the tables are good, and nothing was put right"


async def repair_over_a_folder(task: Task) -> None:
    async with Sandbox.open(SandboxConfig()) as sandbox:
        workspace = await sandbox.workspace()
        await workspace.run("import os\nos.mkdir('X_train.pkl')")
        repair(task, workspace, ENGINEER.produces)


def test_a_folder_in_the_way_of_a_repair_is_a_typed_error(quickstart: TaskSet) -> None:
    with pytest.raises(TaskError, match=r"task Boston: X_train.pkl does not go into the workspace"):
        asyncio.run(repair_over_a_folder(task_named(quickstart, "Boston")))
