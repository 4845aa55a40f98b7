"""The real base on the quickstart's own system and tasks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mappa.config import cache_home
from mappa.model.base import choose_dtype
from mappa.model.smollm2 import smollm2_folder
from mappa.observe.metrics import read_metrics
from mappa.tasks.quickstart import quickstart_folder
from tests.test_train import ROLES, ROOT, check_finished, run


@pytest.mark.timeout(1800)
def test_smollm2_learns_a_step(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    for split, count in (("train", 8), ("heldout", 1)):
        for folder in sorted((quickstart_folder(cache_home()) / split).iterdir())[:count]:
            shutil.copytree(folder, tasks / split / folder.name)
    code, output = run(
        ROOT / "configs" / "quickstart.toml",
        f"runs={tmp_path}",
        "name=real",
        f"tasks.source={tasks}",
        "steps=1",
        "rollout.episodes=2",
        "evaluate.samples=0",
        "learn.lr=1e-3",
    )
    assert code == 0, output
    check_finished(tmp_path / "real", smollm2_folder(cache_home()), 1, 2)
    # Sampler and learner agree, as far as the base's type lets numbers that are summed in another order.
    near = 1e-3 if choose_dtype("auto") is torch.float32 else 2e-2
    for metrics in read_metrics(tmp_path / "real" / "metrics.jsonl"):
        for role in ROLES:
            assert metrics.roles[role].ratio == pytest.approx(1, abs=near)
