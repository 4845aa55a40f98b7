from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from mappa.errors import JournalError
from mappa.observe.curves import curves
from mappa.observe.metrics import RoleMetrics, StepMetrics, append_metrics


def test_draws_a_picture_with_every_role(tmp_path: Path) -> None:
    for number in range(1, 6):
        roles = {
            "data_engineer": RoleMetrics(actions=4, score=2.0 * number, success=0.2 * number, distinct=1.0, kl=0.01)
        }
        if number != 3:  # a role may miss a step
            roles["modeler"] = RoleMetrics(actions=4, score=None, success=0.5)
        append_metrics(
            tmp_path / "metrics.jsonl", StepMetrics(step=number, episodes=4, success=0.1 * number, roles=roles)
        )
    path = curves(tmp_path)
    assert path == tmp_path / "curves.png"
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1300, 832)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_a_single_step_is_drawn(tmp_path: Path) -> None:
    append_metrics(tmp_path / "metrics.jsonl", StepMetrics(step=1, episodes=4))
    assert curves(tmp_path).stat().st_size > 5_000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no step to draw"):
        curves(tmp_path)
