"""What a role left behind, measured: the evidence its coach judges by, and the episode's outcome.

A file that model-written code made is opened by a trusted program (probes/) in a *fresh* workspace, never by the host,
and never beside the private answers if it is a pickle: a model is asked for predictions in one workspace, and those, as
text, are graded in another.

The facts, by what the role produces:

    X_train.pkl ...   X_train.pkl, y_train.pkl, X_test.pkl (they load), shapes, ids, target_left_out, same_columns,
                      target_values, numeric, no_missing; all but `ids` are needed for success
    model.pkl         model.pkl (it loads), has_predict, predicts, graded, score, normalised, beats_baseline
    submission.csv    submission.csv (it is there), readable, columns, ids, values, score, normalised, beats_baseline
                      and, where they can be worked out: accuracy, f1, auc; rmse, rmse_of_range
    anything else     whether it is there

A role that produces several of these has the facts of all, the later ones' where they share a name, and succeeds if all
do. A file is read up to a limit that grows with the task's own tables (`_pickle_limit`, `_table_limit`).

`score` and `normalised` are None where nothing could be graded. Success of model and submission is `beats_baseline`.
Tasks without files are in answers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mappa.errors import TaskError
from mappa.tasks.answers import inspect_answer
from mappa.tasks.folder import ANSWERS
from mappa.tasks.metrics import beats_baseline, normalised
from mappa.tasks.probing import OpenWorkspace, Report, collect, probe, short
from mappa.tasks.supply import read_cached, size_of
from mappa.types import Action, Evidence, Fact, Metric, Outcome, Role, Task, Workspace

PICKLE_MB, TABLE_MB = 64, 8
"""What may always be read."""
PICKLE_FACTOR, TABLE_FACTOR = 16, 8
"""And how many times the task's own tables: a cell is two bytes of text or more, and eight of a float64."""

ENGINEER_TABLES = ("X_train.pkl", "y_train.pkl", "X_test.pkl")
ENGINEER_NEEDED = (
    *ENGINEER_TABLES,
    "shapes",
    "target_left_out",
    "same_columns",
    "target_values",
    "numeric",
    "no_missing",
)
ENGINEER_FACTS = (*ENGINEER_NEEDED, "ids")
MODEL_FACTS = ("model.pkl", "has_predict", "predicts")
SUBMISSION_FACTS = ("readable", "columns", "ids", "values")
SCORES = ("score", "normalised", "accuracy", "f1", "auc", "rmse", "rmse_of_range")


async def inspect(
    task: Task, role: Role, workspace: Workspace, open_workspace: OpenWorkspace, action: Action | None = None
) -> Evidence | None:
    """Measure what `role` must produce, as it now lies in the episode's `workspace`; of a task without files, what it
    said in `action`. None where the role need not produce anything.

    `open_workspace` opens a fresh workspace; every one that is opened is closed. Raises SandboxError if the sandbox
    itself failed, TaskError if the task lacks what measuring needs.
    """
    if not task.folder:
        return await inspect_answer(task, role, action, open_workspace) if task.answer and action is not None else None
    left, found = set(role.produces), []
    for names, look in (
        (ENGINEER_TABLES, _inspect_tables),
        (("model.pkl",), _inspect_model),
        (("submission.csv",), _inspect_submission),
    ):
        if left >= set(names):
            left -= set(names)
            found.append(await look(task, workspace, open_workspace))
    if left:
        found.append(_present([name for name in role.produces if name in left], workspace))
    return _together(found) if found else None


def outcome(task: Task, actions: Sequence[Action], produces: Mapping[str, Sequence[str]] | None = None) -> Outcome:
    """How the episode ended: a success if what every role left last succeeded, a submission was graded, and no input
    was put right. `metrics` has the scores of the last submission. `produces` says which files are whose, by role: of a
    file that several made, the last maker's counts. A task without files is a success if the last answer is right."""
    if task.metric is None:
        final = actions[-1].evidence if actions else None
        success = final is not None and final.success
        return Outcome(success=success, metrics={"correct": float(success)} if task.answer else {})
    last: dict[str, Evidence] = {}
    graded: dict[str, float] = {}
    for action in actions:
        if action.evidence is not None:
            names = (produces or {}).get(action.role) or (f"what {action.role} left",)
            last |= dict.fromkeys(names, action.evidence)
            if "submission.csv" in action.evidence.facts:
                scores = {name: action.evidence.facts.get(name) for name in SCORES}
                graded = {name: float(score) for name, score in scores.items() if isinstance(score, (int, float))}
    success = (
        bool(graded)
        and all(evidence.success for evidence in last.values())
        and not any(action.repaired for action in actions)
    )
    return Outcome(success=success, metrics=graded)


def _together(found: Sequence[Evidence]) -> Evidence:
    facts = {name: fact for evidence in found for name, fact in evidence.facts.items()}
    fault = next((evidence.fault for evidence in found if evidence.fault), None)
    return Evidence(success=all(evidence.success for evidence in found), fault=fault, facts=facts)


def _pickle_limit(task: Task) -> int:
    tables = sum(size_of(f"{task.folder}/public/{name}") for name in ("train.csv", "test.csv"))
    return max(PICKLE_MB << 20, PICKLE_FACTOR * tables)


def _table_limit(task: Task) -> int:
    return max(TABLE_MB << 20, TABLE_FACTOR * size_of(f"{task.folder}/{ANSWERS}"))


def _present(names: Sequence[str], workspace: Workspace) -> Evidence:
    """Files of a kind that nobody here can open: whether they are there."""
    facts: dict[str, Fact] = {name: name in workspace.files() for name in names}
    missing = [name for name, there in facts.items() if not there]
    return Evidence(success=not missing, fault=f"{missing[0]} missing" if missing else None, facts=facts)


async def _inspect_tables(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    files, fault = collect(workspace, ENGINEER_TABLES, _pickle_limit(task))
    if not files:
        return Evidence(success=False, fault=fault, facts=dict.fromkeys(ENGINEER_FACTS, False))
    for name in ("train.csv", "test.csv"):
        files[name] = read_cached(f"{task.folder}/public/{name}")
    request = {"target": task.target, "id_column": task.id_column}
    report = (await probe("engineer", request, files, open_workspace)).report
    facts: dict[str, Fact] = {name: report.facts.get(name, False) for name in ENGINEER_FACTS}
    success = all(facts[name] for name in ENGINEER_NEEDED)
    return Evidence(success=success, fault=None if success else short(fault or report.fault), facts=facts)


async def _inspect_model(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    """Without an X_test.pkl the model is tried on X_train.pkl: that shows whether it works, not how well."""
    facts: dict[str, Fact] = dict.fromkeys((*MODEL_FACTS, "graded"), False) | _ungraded()
    limit = _pickle_limit(task)
    model, fault = collect(workspace, ("model.pkl",), limit)
    if not model:
        return Evidence(success=False, fault=fault, facts=facts)
    features, fault = collect(workspace, ("X_test.pkl",), limit)
    table = "test.csv"
    if not features:
        features, table = collect(workspace, ("X_train.pkl",), limit)[0], "train.csv"
    files = {**model, **features, table: read_cached(f"{task.folder}/public/{table}")}
    request = {"target": task.target, "id_column": task.id_column, "table": table, "features": "".join(features)}
    found = await probe("model", request, files, open_workspace, predictions_limit=_table_limit(task))
    facts |= {name: found.report.facts.get(name, False) for name in MODEL_FACTS}
    if found.report.fault is not None or found.predictions is None:
        return Evidence(success=False, fault=short(found.report.fault or "no predictions were written"), facts=facts)
    if table != "test.csv":
        return Evidence(success=False, fault=f"model cannot be graded: {fault}", facts=facts)
    report = await _grade(task, "predictions.csv", found.predictions, open_workspace)
    facts |= {"graded": report.score is not None, **_scores(task, report)}
    return _graded_evidence(facts, report)


async def _inspect_submission(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    facts: dict[str, Fact] = dict.fromkeys(("submission.csv", *SUBMISSION_FACTS), False) | _ungraded()
    files, fault = collect(workspace, ("submission.csv",), _table_limit(task))
    if not files:
        return Evidence(success=False, fault=fault, facts=facts)
    report = await _grade(task, "submission.csv", files["submission.csv"], open_workspace)
    facts |= {"submission.csv": True, **{name: report.facts.get(name, False) for name in SUBMISSION_FACTS}}
    facts |= _scores(task, report)
    return _graded_evidence(facts, report)


async def _grade(task: Task, name: str, predictions: bytes, open_workspace: OpenWorkspace) -> Report:
    """The only place where the answers meet anything of the model's making, and that is text."""
    request = {"file": name, "target": task.target, "id_column": task.id_column, "metric": _metric(task).name}
    files = {name: predictions, "answers.csv": read_cached(f"{task.folder}/{ANSWERS}")}
    return (await probe("grade", request, files, open_workspace)).report


def _metric(task: Task) -> Metric:
    if task.metric is None:
        raise TaskError(f"task {task.id} has no metric: tabular tasks are measured by rmse or accuracy")
    return task.metric


def _ungraded() -> dict[str, Fact]:
    return {"score": None, "normalised": None, "beats_baseline": False}


def _scores(task: Task, report: Report) -> dict[str, Fact]:
    if report.score is None:
        return _ungraded()
    metric = _metric(task)
    return {
        **report.scores,
        "score": report.score,
        "normalised": normalised(metric, report.score),
        "beats_baseline": beats_baseline(metric, report.score),
    }


def _graded_evidence(facts: dict[str, Fact], report: Report) -> Evidence:
    success = facts["beats_baseline"] is True
    fault = None if success else short(report.fault) or "no better than the baseline"
    return Evidence(success=success, fault=fault, facts=facts)
