"""What a role left behind, measured: the evidence its coach judges by, and the episode's outcome.

A file that model-written code made is opened by a trusted program (probes/) in a *fresh* workspace, never by the host,
and never beside the private answers if it is a pickle: a model is asked for predictions in one workspace, and those, as
text, are graded in another.

The facts, by what the role produces:

    X_train.pkl ...   X_train.pkl, y_train.pkl, X_test.pkl (they load), shapes, ids, target_left_out, same_columns,
                      target_values, numeric, no_missing; all but `ids` are needed for success
    model.pkl         model.pkl (it loads), has_predict, predicts, graded, score, normalised, beats_baseline
    submission.csv    submission.csv (it is there), readable, columns, ids, values, score, normalised, beats_baseline

`score` and `normalised` are None where nothing could be graded. Success of the last two is `beats_baseline`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from mappa.errors import SandboxError, TaskError
from mappa.tasks.folder import ANSWERS
from mappa.tasks.metrics import beats_baseline, normalised
from mappa.tasks.supply import read_cached
from mappa.types import Action, Evidence, Fact, Metric, Outcome, Role, Task, Workspace

OpenWorkspace = Callable[[], Awaitable[Workspace]]

PICKLE_LIMIT = 64 << 20
TABLE_LIMIT = 8 << 20
REPORT_LIMIT = 64 << 10
FAULT_LENGTH = 240

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


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe found; written where foreign objects were loaded, so checked like any input."""

    facts: dict[str, bool]
    fault: str | None
    score: float | None = None


class _Finding(Struct, frozen=True):
    report: Report
    predictions: bytes | None = None


async def inspect(task: Task, role: Role, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    """Measure what `role` must produce, as it now lies in the episode's `workspace`.

    `open_workspace` opens a fresh workspace; every one that is opened is closed. Raises SandboxError if the sandbox
    itself failed, TaskError if `role` produces nothing that these tasks know how to measure.
    """
    if set(ENGINEER_TABLES) <= set(role.produces):
        return await _inspect_tables(task, workspace, open_workspace)
    if "model.pkl" in role.produces:
        return await _inspect_model(task, workspace, open_workspace)
    if "submission.csv" in role.produces:
        return await _inspect_submission(task, workspace, open_workspace)
    raise TaskError(
        f"task {task.id}: no check for role {role.name!r}, which produces {', '.join(role.produces) or 'nothing'}; "
        f"tabular tasks know {', '.join(ENGINEER_TABLES)}, model.pkl and submission.csv"
    )


def outcome(task: Task, actions: Sequence[Action]) -> Outcome:
    """How the episode ended: a success if every role's last action succeeded, a submission was graded, and no input was
    put right. `metrics` has the submission's score and normalised score where there is one."""
    last = {action.role: action.evidence for action in actions}
    graded: dict[str, float] = {}
    for evidence in last.values():
        if evidence is not None and "submission.csv" in evidence.facts:
            scores = {name: evidence.facts[name] for name in ("score", "normalised")}
            graded = {name: float(score) for name, score in scores.items() if isinstance(score, (int, float))}
    success = (
        bool(graded)
        and all(evidence is not None and evidence.success for evidence in last.values())
        and not any(action.repaired for action in actions)
    )
    return Outcome(success=success, metrics=graded)


async def _inspect_tables(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    files, fault = _collect(workspace, ENGINEER_TABLES, PICKLE_LIMIT)
    if not files:
        return Evidence(success=False, fault=fault, facts=dict.fromkeys(ENGINEER_FACTS, False))
    for name in ("train.csv", "test.csv"):
        files[name] = read_cached(f"{task.folder}/public/{name}")
    request = {"target": task.target, "id_column": task.id_column}
    report = (await _probe("engineer", request, files, open_workspace)).report
    facts: dict[str, Fact] = {name: report.facts.get(name, False) for name in ENGINEER_FACTS}
    success = all(facts[name] for name in ENGINEER_NEEDED)
    return Evidence(success=success, fault=None if success else _short(fault or report.fault), facts=facts)


async def _inspect_model(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    """Without an X_test.pkl the model is tried on X_train.pkl: that shows whether it works, not how well."""
    facts: dict[str, Fact] = dict.fromkeys((*MODEL_FACTS, "graded"), False) | _ungraded()
    model, fault = _collect(workspace, ("model.pkl",), PICKLE_LIMIT)
    if not model:
        return Evidence(success=False, fault=fault, facts=facts)
    features, fault = _collect(workspace, ("X_test.pkl",), PICKLE_LIMIT)
    table = "test.csv"
    if not features:
        features, table = _collect(workspace, ("X_train.pkl",), PICKLE_LIMIT)[0], "train.csv"
    files = {**model, **features, table: read_cached(f"{task.folder}/public/{table}")}
    request = {"target": task.target, "id_column": task.id_column, "table": table, "features": "".join(features)}
    found = await _probe("model", request, files, open_workspace, wants_predictions=True)
    facts |= {name: found.report.facts.get(name, False) for name in MODEL_FACTS}
    if found.report.fault is not None or found.predictions is None:
        return Evidence(success=False, fault=_short(found.report.fault or "no predictions were written"), facts=facts)
    if table != "test.csv":
        return Evidence(success=False, fault=f"model cannot be graded: {fault}", facts=facts)
    report = await _grade(task, "predictions.csv", found.predictions, open_workspace)
    facts |= {"graded": report.score is not None, **_scores(task, report)}
    return _graded_evidence(facts, report)


async def _inspect_submission(task: Task, workspace: Workspace, open_workspace: OpenWorkspace) -> Evidence:
    facts: dict[str, Fact] = dict.fromkeys(("submission.csv", *SUBMISSION_FACTS), False) | _ungraded()
    files, fault = _collect(workspace, ("submission.csv",), TABLE_LIMIT)
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
    return (await _probe("grade", request, files, open_workspace)).report


async def _probe(
    program: str,
    request: Mapping[str, str],
    files: Mapping[str, bytes],
    open_workspace: OpenWorkspace,
    *,
    wants_predictions: bool = False,
) -> _Finding:
    """Run a probe over `files` in a workspace of its own. Raises SandboxError if it could not be run at all."""
    workspace = await open_workspace()
    try:
        try:
            for name, data in {**files, "request.json": msgspec.json.encode(request)}.items():
                workspace.put(name, data)
        except OSError as error:
            return _Finding(Report(facts={}, fault=f"{next(iter(files))} could not be opened: {error.strerror}"))
        result = await workspace.run(_program(program))
        if result.outcome == "sandbox-failure":
            raise SandboxError(
                f"the sandbox failed while it looked at {', '.join(files)}: {result.stderr[:FAULT_LENGTH]}"
            )
        report = _read_report(workspace, result.outcome, files)
        predictions = _collect(workspace, ("predictions.csv",), TABLE_LIMIT)[0] if wants_predictions else {}
        return _Finding(report, predictions.get("predictions.csv"))
    finally:
        workspace.close()


def _read_report(workspace: Workspace, how_it_ended: str, files: Mapping[str, bytes]) -> Report:
    """The probe's report; one that says so where an object that it loaded kept it from writing one."""
    data, fault = _collect(workspace, ("report.json",), REPORT_LIMIT)
    if data:
        try:
            return msgspec.json.decode(data["report.json"], type=Report)
        except msgspec.DecodeError as error:
            fault = str(error)
    return Report(facts={}, fault=f"{next(iter(files))} could not be opened: {how_it_ended}, {fault}")


def _collect(workspace: Workspace, names: Sequence[str], limit: int) -> tuple[dict[str, bytes], str | None]:
    """Those of `names` that are there and small enough, as bytes, and what is wrong with the first that is not."""
    sizes = workspace.files()
    found: dict[str, bytes] = {}
    fault = None
    for name in names:
        if name not in sizes:
            fault = fault or f"{name} missing"
        elif sizes[name] > limit:
            fault = fault or f"{name} has {sizes[name] >> 20} MiB, at most {limit >> 20} are read"
        else:
            try:
                found[name] = workspace.read(name, limit)
            except OSError as error:
                fault = fault or f"{name} cannot be read: {error.strerror}"
    return found, fault


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
        "score": report.score,
        "normalised": normalised(metric, report.score),
        "beats_baseline": beats_baseline(metric, report.score),
    }


def _graded_evidence(facts: dict[str, Fact], report: Report) -> Evidence:
    success = facts["beats_baseline"] is True
    fault = None if success else _short(report.fault) or "no better than the baseline"
    return Evidence(success=success, fault=fault, facts=facts)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= FAULT_LENGTH else text[:FAULT_LENGTH] + "..."


@cache
def _program(name: str) -> str:
    return (Path(__file__).parent / "probes" / f"{name}.py").read_text()
