"""What a team's episodes on held-out tasks come to, each number with its 95 % interval over tasks.

Of submissions:
    submission          share of episodes that left one that could be graded: the paper's success rate
    accuracy, f1, auc   of classification tasks, mean over the graded submissions
    rmse_of_range       of regression tasks, likewise: RMSE as a share of the range of the answers
    ..., fair           the same over all episodes: a failed one counts as 0.5 accuracy, 0 f1, 0.5 auc, 0.5 of the range
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


def measures(by_task: PerTask) -> dict[str, Share]:
    """All that can be said of these episodes, grouped by task."""
    found: dict[str, Share] = {}
    tabular = [group for group in by_task if group and group[0].kind in set(KIND_OF.values())]
    if tabular:
        found["submission"] = rate([[_graded(episode) for episode in group] for group in tabular])
        for name, failed in FAIR.items():
            mine = [group for group in tabular if group[0].kind == KIND_OF[name]]
            values = [[_metric(episode, name) for episode in group] for group in mine]
            graded = [[value for value in group if value is not None] for group in values]
            if any(graded):
                found[name] = mean(graded)
            if any(graded) or (mine and name != "auc"):
                found[f"{name}, fair"] = mean([[failed if v is None else v for v in group] for group in values])
        found["normalised, DSBench"] = mean(
            [[max(0.0, _metric(episode, "normalised") or 0.0) for episode in group] for group in tabular]
        )
    return found | pass_at([[succeeded(episode) for episode in group] for group in by_task])


def habits(by_task: PerTask, role: str) -> dict[str, Share]:
    """How a role works; empty where it never acted."""
    found = {}
    for name, habit in HABITS.items():
        per_task = [
            [value for e in group for a in e.actions if a.role == role and (value := habit(a)) is not None]
            for group in by_task
        ]
        if any(per_task):
            found[name] = mean(per_task)
    return found


def pass_at(per_task: Sequence[Sequence[bool]]) -> dict[str, Share]:
    """pass@k for k = 2, 4, 8 ... up to the episodes that every task has."""
    least = min((len(group) for group in per_task), default=0)
    found, k = {}, 2
    while k <= least:
        found[f"pass@{k}"] = mean([[pass_at_k(len(group), sum(group), k)] for group in per_task])
        k *= 2
    return found


def pass_at_k(episodes: int, successes: int, k: int) -> float:
    """Chen et al. 2021, eq. 1."""
    return 1.0 - math.comb(episodes - successes, k) / math.comb(episodes, k)


def succeeded(episode: Episode) -> bool:
    return episode.outcome is not None and episode.outcome.success


def rate(per_task: Sequence[Sequence[bool]]) -> Share:
    """A share of episodes; its interval is never narrower than Wilson's."""
    low, high = success_interval(per_task)
    return fmean(value for values in per_task for value in values), low, high


def mean(per_task: Sequence[Sequence[float]]) -> Share:
    low, high = bootstrap_interval(per_task)
    return fmean(value for values in per_task for value in values), low, high


def _graded(episode: Episode) -> bool:
    return _metric(episode, "score") is not None


def _metric(episode: Episode, name: str) -> float | None:
    return episode.outcome.metrics.get(name) if episode.outcome is not None else None
