"""What the runs of bench/arms.py come to: seeds pooled by task, intervals over tasks, rollouts to a given success."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from bench.harness import Row
from bench.parts.arms_runs import Done
from mappa.observe.evaluation import EvaluationResult
from mappa.observe.measures import Share, rate
from mappa.observe.statistics import paired_difference

GAIN, SPEED = 0.5, 2.0
"""The goals: points of held-out success over the base, and how many times more rollouts outcome-only needs."""


def by_task(results: Sequence[EvaluationResult]) -> list[list[bool]]:
    """Every episode's success, those of one task together whatever run they are of."""
    grouped: dict[str, list[bool]] = {}
    for result in results:
        each = result.episodes // len(result.tasks)
        for task, share in result.tasks.items():
            successes = round(share * each)
            grouped.setdefault(task, []).extend([True] * successes + [False] * (each - successes))
    return list(grouped.values())


def curve(runs: Sequence[Done]) -> list[tuple[int, Share]]:
    """Held-out success at each number of training episodes that all of these runs were measured at."""
    shared = set.intersection(*({rollouts for rollouts, _ in run.curve} for run in runs))
    return [(at, rate(by_task([dict(run.curve)[at] for run in runs]))) for at in sorted(shared)]


def gain(runs: Sequence[Done]) -> tuple[float, float, float, float]:
    """Trained over base: (difference, low, high, p), paired by task."""
    before, after = (by_task(results) for results in ([r.base for r in runs], [r.trained for r in runs]))
    return paired_difference(before, after)


def against(runs: Sequence[Done], others: Sequence[Done]) -> tuple[float, float, float, float] | None:
    """Trained over trained of another arm, with the seeds that both have: (difference, low, high, p), paired by task.
    None: they have none in common."""
    both = {run.seed for run in runs} & {run.seed for run in others}
    ours, theirs = (by_task([run.trained for run in arm if run.seed in both]) for arm in (runs, others))
    return paired_difference(theirs, ours) if both else None


def measured(runs: Sequence[Done], name: str) -> tuple[float, float] | None:
    """Success, or one of the evaluation's measures, before and after training: means over the seeds. None: not every
    run has it."""

    def of(result: EvaluationResult) -> float:
        return result.success if name == "success" else result.measures[name][0]

    if not runs or (name != "success" and any(name not in r.measures for run in runs for r in (run.base, run.trained))):
        return None
    return fmean(of(run.base) for run in runs), fmean(of(run.trained) for run in runs)


def rollouts_to(points: Sequence[tuple[int, Share]], success: float) -> float | None:
    """Training episodes until the curve reaches `success`, in a straight line between measurements; None: it never
    does."""
    if points[0][1][0] >= success:
        return float(points[0][0])
    for (left, (below, _, _)), (right, (above, _, _)) in itertools.pairwise(points):
        if below < success <= above:
            return left + (right - left) * (success - below) / (above - below)
    return None


def halfway(arms: dict[str, list[Done]]) -> float | None:
    """The success that arms are compared at: halfway between the base and what process rewards came to, if that is
    more."""
    if not arms.get("process"):
        return None
    (_, base), *_, (_, trained) = curve(arms["process"])
    return (base[0] + trained[0]) / 2 if trained[0] > base[0] else None


def rows(arms: dict[str, list[Done]]) -> list[Row]:
    """The goals, as far as the runs for them are done."""
    found = []
    if runs := arms.get("process"):
        (_, base), *_, (_, trained) = curve(runs)
        met = trained[0] - base[0] >= GAIN and trained[1] > base[2]
        what = f"held-out success, process rewards, {len(runs)} seeds"
        found.append(_row(what, trained[0], base[0], "the base", trained[0] - base[0], f">= +{GAIN}", met))
    if runs := arms.get("shuffled"):
        change, low, *_ = gain(runs)
        (_, base), *_, (_, trained) = curve(runs)
        what = f"held-out success, shuffled scores, {len(runs)} seeds"
        found.append(_row(what, trained[0], base[0], "the base", change, "no gain", low <= 0))
    level = halfway(arms)
    if level is not None and arms.get("outcome"):
        ours, theirs = (rollouts_to(curve(arms[name]), level) for name in ("process", "outcome"))
        ratio = theirs / ours if ours and theirs else None
        note = "" if theirs else f"outcome-only never came to {100 * level:.0f} %"
        met = theirs is None or (ratio is not None and ratio >= SPEED)
        what = f"rollouts to {100 * level:.0f} % held-out success"
        found.append(Row(what, ours, theirs, "outcome-only", "episodes", ratio, f">= {SPEED:g}", met, note))
    return found


def record(arms: dict[str, list[Done]]) -> dict[str, Any]:
    """All of it, for the JSON file."""
    level = halfway(arms)
    found = {name: _arm(runs, level) for name, runs in arms.items() if runs}
    for name in found.keys() - {"process"}:
        found[name]["against process"] = _difference(against(arms[name], arms.get("process", [])))
    return found


def _arm(runs: Sequence[Done], level: float | None) -> dict[str, Any]:
    points = curve(runs)
    return {
        "curve": [{"rollouts": at, "success": share} for at, share in points],
        "gain": _difference(gain(runs)),
        "rollouts to halfway": rollouts_to(points, level) if level is not None else None,
        "training minutes": fmean(run.training_minutes for run in runs),
        "cpu minutes": fmean(run.cpu_minutes for run in runs),
        "seeds": {
            run.seed: {
                "curve": [
                    {"rollouts": at, "success": result.success, "tasks": result.tasks} for at, result in run.curve
                ],
                "measures": {"base": run.base.measures, "trained": run.trained.measures},
                "training": run.training,
                "training minutes": run.training_minutes,
                "cpu minutes": run.cpu_minutes,
            }
            for run in runs
        },
    }


def _difference(found: tuple[float, float, float, float] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    change, low, high, p = found
    return {"mean": change, "interval": [low, high], "p": p}


def _row(what: str, ours: float, peer: float, name: str, difference: float, goal: str, met: bool) -> Row:
    return Row(what, ours, peer, name, "share", difference, goal, met, "ratio: the difference")
