"""The step metrics as TensorBoard scalars, written with tensorboard's own writer: torch is not needed for that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mappa.observe.metrics import StepMetrics


class Scalars:
    """Event files in `folder`. Tags are `measure/role`, so that the roles of one measure stand side by side.

    `first_step` is the step a resumed run starts with: points that an interrupted run left from there on disappear.
    """

    def __init__(self, folder: Path, first_step: int = 1) -> None:
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, metrics: StepMetrics) -> None:
        """Add every number of a step that was measured, and put them on disk."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars_of(metrics)]
        self._writer.add_event(Event(wall_time=time.time(), step=metrics.step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars_of(metrics: StepMetrics) -> Iterator[tuple[str, float]]:
    """(tag, value) for all that was measured in a step."""
    for role, numbers in metrics.roles.items():
        for name in numbers.__struct_fields__:
            value = getattr(numbers, name)
            if value is not None:
                yield f"{name}/{role}", float(value)
    if metrics.success is not None:
        yield "success/pipeline", metrics.success
    for name in (
        "episodes",
        "lost",
        "tokens_generated",
        "tokens_trained",
        "tokens_computed",
        "tokens_unshared",
        "peak_memory_gb",
    ):
        yield f"step/{name}", float(getattr(metrics, name))
    yield "step/tokens_per_second", metrics.tokens_per_second
    for name in metrics.seconds.__struct_fields__:
        yield f"seconds/{name}", getattr(metrics.seconds, name)
    for name, value in metrics.coach.items():
        yield f"coach/{name}", value
    yield "coach/alarms", float(len(metrics.alarms))
    for name, spent in metrics.learning.items():
        yield f"learning/{name}", spent
