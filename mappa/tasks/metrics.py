"""What a score means: the metrics, and the one scale that makes tasks comparable."""

from __future__ import annotations

from mappa.types import Metric

METRIC_OF_KIND = {"regression": "rmse", "classification": "accuracy"}
GREATER_IS_BETTER = {
    "rmse": False, "mae": False, "rmsle": False, "r2": True,
    "accuracy": True, "f1": True, "f1_binary": True, "mcc": True, "qwk": True, "auc": True, "gini": True,
    "logloss": False,
}  # fmt: skip
"""What probes/grade.py measures by."""
METRICS_OF_KIND = {
    "regression": ("rmse", "mae", "rmsle", "r2"),
    "classification": ("accuracy", "f1", "f1_binary", "mcc", "qwk", "auc", "gini", "logloss"),
}

FLOOR = -1.0


def normalised(metric: Metric, score: float) -> float:
    """`score` on the scale where the trivial prediction is 0 and a competent model is 1, whatever the direction.

    Above 1 is better than the reference and is kept. Below, -1 is the floor: a prediction can be arbitrarily bad, and
    one exploded regression must not outweigh every other task in a mean.

    >>> normalised(Metric(name="rmse", greater_is_better=False, baseline=10.0, reference=4.0), 7.0)
    0.5
    """
    return max(FLOOR, (score - metric.baseline) / (metric.reference - metric.baseline))


def beats_baseline(metric: Metric, score: float) -> bool:
    """Strictly better than the trivial prediction."""
    return score > metric.baseline if metric.greater_is_better else score < metric.baseline
