"""Corrected actions: what is tried, where, and what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from mappa.coach import ActionContext
from mappa.coach.rewrite import Rewrite, read_rewritten
from mappa.config import SandboxConfig, cache_home
from mappa.journal import Entry, Observation, Record
from mappa.rollout.place import OpenWorkspace
from mappa.rollout.review import contexts_of
from mappa.rollout.rewrite import Rewriter
from mappa.sandbox import Sandbox
from mappa.systems.datascience import ANALYST, ENGINEER, MODELER, _fit, _prepare, _submit
from mappa.tasks import prepare
from mappa.types import Action, Episode, Evidence, Task, Verdict, Workspace

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


def rewriter(writer: Scribe, open_workspace: OpenWorkspace, *, below: float = 5.0, longest: int = 1000) -> Rewriter:
    return Rewriter(
        writer=writer,
        below=below,
        output_ids=lambda prompt, text, ended: (*(5 for _ in text.split()), *([0] * ended)),
        longest=longest,
        open_workspace=open_workspace,
    )


async def tried(record: Record, task: Task, by: Rewriter) -> tuple[Rewrite, ...]:
    contexts = {f"1/{context.role.name}/0": context for context in contexts_of(record, task, ROLES)}
    return await by.rewrites([record], contexts, ROLES)


async def nowhere() -> Workspace:
    raise AssertionError("something was run")


@pytest.fixture(scope="module")
def task() -> Task:
    return prepare("quickstart", cache_home()).train[0]


def test_what_runs_and_does_better_where_the_first_one_stood_is_kept(task: Task, tmp_path: Path) -> None:
    """It works from the engineer's tables, run again, and from the model that was put in place of the modeler's."""
    out = tmp_path / "out"
    worse = ("raise ValueError", "pass", f"open({str(out)!r}, 'w').write('here')")
    estimator = "RandomForestRegressor" if task.kind == "regression" else "RandomForestClassifier"
    submit, fit = Scribe(_submit(task.target)), Scribe(_fit(task.kind, estimator))

    async def work() -> tuple[tuple[Rewrite, ...], tuple[Rewrite, ...], list[tuple[Rewrite, ...]]]:
        async with Sandbox.open(SandboxConfig(parallel=1, timeout=120.0)) as sandbox:
            analyst = await tried(episode(task), task, rewriter(submit, sandbox.workspace))
            modeler = await tried(episode(task, analysts=9.0), task, rewriter(fit, sandbox.workspace, below=8.0))
            writers = [rewriter(Scribe(f"```python\n{code}\n```"), sandbox.workspace) for code in worse]
            return analyst, modeler, [await tried(episode(task), task, writer) for writer in writers]

    (analyst,), (modeler,), rest = asyncio.run(work())
    assert submit.asked == ["analyst"] and fit.asked == ["modeler"], "the others were scored well enough"
    assert (analyst.adapter, analyst.prompt_ids, analyst.source) == ("analyst", (1, 2), "1/analyst/0")
    assert analyst.output_ids == (5,) * len(_submit(task.target).split()), "a role with a stop does not end its turn"
    assert modeler.adapter == "modeler"
    assert rest == [(), (), ()] and not out.exists()


@pytest.mark.parametrize("text", [None, "no code at all", "```python\npass\n```" + " word" * 1000])
def test_what_is_no_code_or_too_long_is_not_tried(task: Task, text: str | None) -> None:
    assert not asyncio.run(tried(episode(task), task, rewriter(Scribe(text), nowhere)))


def test_nobody_is_asked_about_what_has_no_low_score(task: Task) -> None:
    good, record = Scribe(_submit(task.target)), episode(task)
    unscored = replace(record.entries[2], action=replace(record.entries[2].action, verdict=None))
    for one in (episode(task, analysts=8.0), replace(record, entries={**record.entries, 2: unscored})):
        assert not asyncio.run(tried(one, task, rewriter(good, nowhere)))
    assert not good.asked


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
