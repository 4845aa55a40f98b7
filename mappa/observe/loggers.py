"""Where a run's scalars go: TensorBoard files always, wandb and trackio where the config asks for them.

All get the same numbers under the same names (see scalars.py). A run that is resumed goes on in the same wandb or
trackio run; wandb itself drops a step that it has already.
"""

from __future__ import annotations

import importlib
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from mappa.config import Config
from mappa.errors import ConfigError
from mappa.observe.metrics import StepMetrics
from mappa.observe.scalars import Scalars, scalars_of


class Loggers:
    """All of a run's, as one. `first_step` is the step that a resumed run starts with. Raises ConfigError where the
    config asks for a logger that is not installed."""

    def __init__(self, folder: Path, config: Config, first_step: int = 1) -> None:
        self._stack = ExitStack()
        self._runs: list[Any] = []
        """Each has `log(numbers, step)`."""
        if config.log.wandb != "off":
            self._runs.append(self._wandb(folder, config))
        if config.log.trackio:
            self._runs.append(self._trackio(folder, config))
        self._scalars = self._stack.enter_context(Scalars(folder / "tensorboard", first_step))

    def __enter__(self) -> Loggers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write(self, metrics: StepMetrics) -> None:
        """Add every number of a step that was measured."""
        self._scalars.write(metrics)
        if self._runs:
            numbers = dict(scalars_of(metrics))
            for run in self._runs:
                run.log(numbers, step=metrics.step)

    def _wandb(self, folder: Path, config: Config) -> Any:
        wandb = _library("wandb", 'log.wandb="off"')
        run = wandb.init(
            project=config.log.project,
            name=config.name,
            id=_id(folder),
            resume="allow",
            mode=config.log.wandb,
            dir=str(folder),
            config=msgspec.to_builtins(config),
        )
        self._stack.callback(run.finish)
        return run

    def _trackio(self, folder: Path, config: Config) -> Any:
        trackio = _library("trackio", "log.trackio=false")
        run = trackio.init(
            project=config.log.project,
            name=f"{config.name}-{_id(folder)}",
            resume="allow",
            config=msgspec.to_builtins(config),
            embed=False,
        )
        self._stack.callback(run.finish)
        return run


def _library(name: str, otherwise: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the config logs to {name}, which cannot be imported ({error}); pip install {name}, or set {otherwise}"
        ) from None


def _id(folder: Path) -> str:
    """The same for as long as the run's folder lives; a run that starts afresh is another one."""
    path = folder / "logger-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text()
