from __future__ import annotations

import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mappa.observe.metrics import RoleMetrics, Seconds, StepMetrics
from mappa.observe.scalars import Scalars


def step(number: int, score: float | None) -> StepMetrics:
    roles = {"modeler": RoleMetrics(actions=18, score=score)}
    return StepMetrics(step=number, episodes=18, success=0.5, roles=roles, seconds=Seconds(learn=4.0))


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    with Scalars(tmp_path) as scalars:
        scalars.write(step(1, 2.0))
        scalars.write(step(2, None))
    tags = read(tmp_path)
    assert tags["score/modeler"] == [(1, 2.0)]  # what was not measured is no point
    assert tags["success/pipeline"] == [(1, 0.5), (2, 0.5)]
    assert tags["seconds/learn"] == [(1, 4.0), (2, 4.0)]


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    with Scalars(tmp_path) as scalars:
        for number in (1, 2, 3):
            scalars.write(step(number, 1.0))
    time.sleep(1.1)  # files are read in the order of their names, which begin with the second
    with Scalars(tmp_path, first_step=2) as scalars:
        scalars.write(step(2, 9.0))
    assert read(tmp_path)["score/modeler"] == [(1, 1.0), (2, 9.0)]
