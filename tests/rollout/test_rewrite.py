"""Corrected actions: what is tried, where, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from mappa.coach import ActionContext
from mappa.coach.rewrite import read_rewritten
from mappa.config import SandboxConfig, cache_home
from mappa.journal import Entry, Observation, Record
from mappa.rollout.review import contexts_of
from mappa.rollout.rewrite import Rewriter
from mappa.sandbox import Sandbox
from mappa.systems.datascience import ANALYST, ENGINEER, MODELER, _fit, _prepare, _submit
from mappa.tasks import prepare
from mappa.types import Action, Episode, Evidence, Role, Task, Verdict

ROLES = {role.name: role for role in (ENGINEER, MODELER, ANALYST)}


class Scribe:
    """Writes the same whatever it is shown."""

    def __init__(self, text: str | None) -> None:
        self.text = text
        self.asked: list[str] = []

    async def rewrite(self, context: ActionContext) -> str | None:
        self.asked.append(context.role.name)
        return self.text


def episode(task: Task, *, analysts: float = 2.0) -> Record:
    """The engineer did well, the modeler fitted nothing and was put right, the analyst wrote no file."""
    entries = {}
    for place, (role, code, success) in enumerate(
        ((ENGINEER, _prepare(task.target), True), (MODELER, "pass", False), (ANALYST, "pass", False))
    ):
        action = Action(
            role=role.name, turn=0, adapter=f"{role.name}@0", prompt_ids=(1, 2), output_ids=(3,), logprobs=(-0.1,),
            finish_reason="stop", text=code, repaired=role is ANALYST,
            evidence=Evidence(success=success, facts=dict.fromkeys(role.produces, success)),
            verdict=Verdict(score=9.0 if success else analysts if role is ANALYST else 7.0, reason="", coach="fixed"),
        )  # fmt: skip
        plain = code.replace("```python\n", "").replace("```", "")
        entries[place] = Entry(action=action, observation=Observation(code=plain, evidence=action.evidence))
    actions = tuple(entry.action for entry in entries.values())
    whole = Episode(id="1", task=task.id, kind=task.kind, seed=0, step=1, actions=actions)
    return Record(episode=whole, state="done", entries=entries)


def rewritten(task: Task, record: Record, scribe: Scribe, *, below: float = 5.0, longest: int = 1000) -> Sequence:
    async def work() -> Sequence:
        contexts: Mapping[str, ActionContext] = {
            f"1/{c.role.name}/0": c for c in contexts_of(record, task, ROLES)
        }  # fmt: skip
        async with Sandbox.open(SandboxConfig(parallel=1)) as sandbox:
            rewriter = Rewriter(
                writer=scribe,
                below=below,
                output_ids=lambda text, ended: (*(5 for _ in text.split()), *([0] * ended)),
                longest=longest,
                open_workspace=sandbox.workspace,
            )
            return await rewriter.rewrites([record], contexts, ROLES)

    return asyncio.run(work())


@pytest.fixture(scope="module")
def task() -> Task:
    return prepare("quickstart", cache_home()).train[0]


def test_what_does_better_where_the_first_one_stood_is_kept(task: Task) -> None:
    """It works from the engineer's tables, run again, and from the model that was put in place of the modeler's."""
    scribe = Scribe(_submit(task.target))
    (found,) = rewritten(task, episode(task), scribe)
    assert scribe.asked == ["analyst"], "the modeler's action was scored well enough"
    assert (found.role, found.prompt_ids, found.source) == ("analyst", (1, 2), "1/analyst/0")
    assert found.output_ids == (5,) * len(_submit(task.target).split()), "a role with a stop does not end its turn"


@pytest.mark.parametrize("text", [None, "no code at all", "```python\nraise ValueError\n```", "```python\npass\n```"])
def test_what_does_not_run_or_is_no_better_is_not(task: Task, text: str | None) -> None:
    assert not rewritten(task, episode(task), Scribe(text))


def test_what_the_role_could_not_write_or_nobody_marked_down_is_not_tried(task: Task) -> None:
    good = Scribe(_submit(task.target))
    assert not rewritten(task, episode(task), good, longest=10)
    assert not rewritten(task, episode(task, analysts=8.0), good) and good.asked == ["analyst"]
    missing = episode(task)
    unscored = replace(missing.entries[2].action, verdict=None)
    missing = replace(missing, entries={**missing.entries, 2: replace(missing.entries[2], action=unscored)})
    assert not rewritten(task, missing, good) and good.asked == ["analyst"]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ('{"reason": "no import", "text": "```python\\npass\\n```"}', "```python\npass\n```"),
        ('Sure:\n{"reason": "r", "text": "fine"} Good luck.', "fine"),
        ('{"reason": "r", "text": " "}', None),
        ('{"text": 3}', None),
        ("", None),
    ],
)
def test_a_rewritten_action_is_read_strictly(reply: str, text: str | None) -> None:
    assert read_rewritten(reply) == text


def test_the_modeler_works_from_the_engineers_tables(task: Task) -> None:
    role: Role = MODELER
    estimator = "RandomForestRegressor" if task.kind == "regression" else "RandomForestClassifier"
    (found,) = rewritten(task, episode(task, analysts=9.0), Scribe(_fit(task.kind, estimator)), below=8.0)
    assert found.role == role.name


def test_the_sandbox_is_where_it_is_tried(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f"```python\nopen({str(out)!r}, 'w').write('here')\n```"
    assert not rewritten(task, episode(task), Scribe(text)) and not out.exists()
