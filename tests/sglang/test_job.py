"""A whole training job on SGLang servers: two ranks, two servers, two steps with publishes between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mappa.observe.metrics import read_metrics
from tests.cpu_servers import cpu_servers
from tests.sglang.conftest import Fleet
from tests.test_train import ROLES, ROOT, check_finished, config_file, run

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1200)]


def overrides(settings: dict[str, Any]) -> list[str]:
    """`sampler.sglang.*` as the command line takes it."""
    lines = ["sampler.kind=sglang"]
    for key, value in settings.items():
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            shown = json.dumps(part)  # close enough to TOML for text, numbers and lists
            lines.append(f"sampler.sglang.{key}{'.' + name if name else ''}={shown}")
    return lines


def check_agreement(folder: Path) -> None:
    """The learner finds the probabilities that the servers sampled with."""
    for metrics in read_metrics(folder / "metrics.jsonl"):
        for role in ROLES:
            assert metrics.roles[role].ratio == pytest.approx(1, abs=1e-3)


def test_two_ranks_train_on_two_servers(fleet: Fleet, tmp_path: Path) -> None:
    config = config_file(tmp_path, fleet.model)
    urls = [server.client.url for server in fleet.sampler.servers]
    # The servers draw other texts in every run: so many that those of a role never all score the same.
    own = ("sampler.max_context=1000", "rollout.episodes=12")
    code, output = run(config, *own, *overrides({"urls": urls}), ranks=2)
    assert code == 0, output
    folder = tmp_path / "runs" / "tiny"
    check_finished(folder, fleet.model, 2, 12)
    check_agreement(folder)


@pytest.mark.slow
def test_the_quickstart_trains_on_servers_of_its_own(tmp_path: Path) -> None:
    """SmolLM2, the quickstart's system and tasks, servers as children of the job."""
    from mappa.config import cache_home
    from mappa.model.smollm2 import smollm2_folder

    code, output = run(
        ROOT / "configs" / "quickstart.toml",
        f"runs={tmp_path}",
        "name=real",
        "dtype=float32",
        "steps=2",
        "rollout.episodes=4",
        "evaluate.samples=0",
        "learn.lr=1e-3",
        *overrides({"servers": 2, **cpu_servers(tokens=32768)}),
        ranks=2,
    )
    assert code == 0, output
    folder = tmp_path / "real"
    check_finished(folder, smollm2_folder(cache_home()), 2, 4)
    check_agreement(folder)
