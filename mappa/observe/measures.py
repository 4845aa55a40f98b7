"""What a team's episodes on held-out tasks come to, each number with its 95 % interval over tasks.

Of submissions:
    submission          share of episodes that left one that could be graded: the paper's success rate
    accuracy, f1, auc   of classification tasks, mean over the graded submissions
    rmse_of_range       of regression tasks, likewise: RMSE as a share of the range of the answers
    ..., fair           the same over all episodes: a failed one counts as 0.5 accuracy, 0 f1, 0.5 auc, 0.5 of the
                        range; a task that cannot have it (the AUC of three classes) is left out
    normalised, DSBench mean of max(0, (score - baseline) / (reference - baseline)), 0 where there is no submission
Of every task:
    pass@k              chance that one of k episodes succeeds, without bias: 1 - C(n-c, k) / C(n, k)
Of a role, per action:
    tool use (it had code), errors (of that code), truncated, tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from mappa.observe.statistics import bootstrap_interval, success_interval
from mappa.types import Action, Episode

Share = tuple[float, float, float]
"""A number, and the low and high end of its interval."""

PerTask = Sequence[Sequence[Episode]]

Values = Sequence[Sequence[float]]
"""A measure's values by task, in the order of the tasks: of each one per episode or action, or none."""

FAIR = {"accuracy": 0.5, "f1": 0.0, "auc": 0.5, "rmse_of_range": 0.5}
"""What a failed run counts as."""
KIND_OF = {
    "accuracy": "classification", "f1": "classification", "auc": "classification", "rmse_of_range": "regression"
}  # fmt: skip
HABITS: dict[str, Callable[[Action], float | None]] = {
    "tool use": lambda action: float(action.execution is not None),
    "errors": lambda action: None if action.execution is None else float(action.execution.outcome != "ok"),
    "truncated": lambda action: float(action.finish_reason == "length"),
    "tokens": lambda action: float(len(action.output_ids)),
}


def values_of(by_task: PerTask) -> dict[str, Values]:
    """The measures by name, each as its values by task."""
    found: dict[str, Values] = {}
    tabular = _of_kinds(by_task, *KIND_OF.values())
    if any(tabular):
        found["submission"] = _values(tabular, _graded)
        for name, failed in FAIR.items():
            mine = _of_kinds(by_task, KIND_OF[name])
            graded = _values(mine, lambda episode, name=name: _metric(episode, name))  # type: ignore[misc]
            if any(graded):
                found[name] = graded
            if any(graded) or (any(mine) and name != "auc"):
                found[f"{name}, fair"] = [_fair(group, name, failed) for group in mine]
        found["normalised, DSBench"] = _values(tabular, lambda e: max(0.0, _metric(e, "normalised") or 0.0))
    return found | pass_at([[succeeded(episode) for episode in group] for group in by_task])


def measures(by_task: PerTask) -> dict[str, Share]:
    """All that can be said of these episodes, grouped by task."""
    return {name: mean(values) for name, values in values_of(by_task).items()}


def habits(by_task: PerTask, role: str) -> dict[str, Share]:
    """How a role works; empty where it never acted."""
    return {name: mean(values) for name, values in habit_values(by_task, role).items()}


def habit_values(by_task: PerTask, role: str) -> dict[str, Values]:
    """The same as values by task, one per action."""
    found: dict[str, Values] = {}
    for name, habit in HABITS.items():
        values = [
            [value for e in group for a in e.actions if a.role == role and (value := habit(a)) is not None]
            for group in by_task
        ]
        if any(values):
            found[name] = values
    return found


def pass_at(per_task: Sequence[Sequence[bool]]) -> dict[str, Values]:
    """pass@k for k = 2, 4, 8 ... and for as many episodes as every task has."""
    least = min((len(group) for group in per_task), default=0)
    ks = sorted({2**power for power in range(1, least.bit_length()) if 2**power <= least} | {least} - {0, 1})
    return {f"pass@{k}": [[pass_at_k(len(group), sum(group), k)] for group in per_task] for k in ks}


def pass_at_k(episodes: int, successes: int, k: int) -> float:
    """Chen et al. 2021, eq. 1."""
    return 1.0 - math.comb(episodes - successes, k) / math.comb(episodes, k)


def succeeded(episode: Episode) -> bool:
    return episode.outcome is not None and episode.outcome.success


def rate(per_task: Sequence[Sequence[bool]]) -> Share:
    """A share of episodes; its interval is never narrower than Wilson's."""
    low, high = success_interval(per_task)
    return fmean(value for values in per_task for value in values), low, high


def mean(per_task: Values) -> Share:
    """A mean with its interval; of numbers that are all 0 or 1, as a share: six zeros are not certainty."""
    values = [value for task in per_task for value in task]
    if set(values) <= {0, 1}:
        return rate([[value == 1 for value in task] for task in per_task])
    low, high = bootstrap_interval(per_task)
    return fmean(values), low, high


def _of_kinds(by_task: PerTask, *kinds: str) -> PerTask:
    """Of tasks of another kind no episodes."""
    return [group if group and group[0].kind in kinds else () for group in by_task]


def _values(by_task: PerTask, measure: Callable[[Episode], float | None]) -> Values:
    """Of each task those of its episodes that have one."""
    return [[value for episode in group if (value := measure(episode)) is not None] for group in by_task]


def _fair(group: Sequence[Episode], name: str, failed: float) -> list[float]:
    """Nothing of a task that was graded and cannot have such a metric (the AUC of three classes)."""
    values = [_metric(episode, name) for episode in group]
    if any(map(_graded, group)) and not any(value is not None for value in values):
        return []
    return [failed if value is None else value for value in values]


def _graded(episode: Episode) -> bool:
    return _metric(episode, "score") is not None


def _metric(episode: Episode, name: str) -> float | None:
    return episode.outcome.metrics.get(name) if episode.outcome is not None else None
