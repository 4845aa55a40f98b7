"""The fast trainer: samples of all roles -> one packed batch -> kernels -> one DeepSpeed step."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mappa.config import LearnConfig
    from mappa.learn.learner import Learner
    from mappa.learn.loss import LossBatch
    from mappa.learn.report import LearnReport, RoleReport
    from mappa.types import Sample

_HOMES = {
    "Learner": "mappa.learn.learner",
    "LearnConfig": "mappa.config",
    "LossBatch": "mappa.learn.loss",
    "LearnReport": "mappa.learn.report",
    "RoleReport": "mappa.learn.report",
    "Sample": "mappa.types",
}

__all__ = ["LearnConfig", "LearnReport", "Learner", "LossBatch", "RoleReport", "Sample"]


def __getattr__(name: str) -> Any:
    """Import on first use: naming this package must not cost an import of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
