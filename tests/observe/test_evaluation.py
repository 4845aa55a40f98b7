from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path

import msgspec
import pytest

from mappa.errors import JournalError
from mappa.evaluate import _place
from mappa.observe.evaluation import EvaluationResult, evaluation_text
from mappa.observe.summary import Summary, read_summary, replace_file, write_summary

BASE = EvaluationResult(
    mode="sampled",
    success=0.0417,
    ci=(0.0115, 0.1397),
    roles={"data_engineer": (0.1, 0.04, 0.22), "modeler": (0.31, 0.2, 0.45)},
    tasks={"Boston": 0.0, "iris": 0.083},
    metric_mean=None,
    episodes=48,
)
TRAINED = EvaluationResult(
    mode="sampled",
    success=0.8333,
    ci=(0.7042, 0.913),
    roles={"data_engineer": (0.94, 0.83, 0.98), "modeler": (0.9, 0.78, 0.95)},
    tasks={"Boston": 0.8, "iris": 0.86},
    metric_mean=0.614,
    episodes=48,
    lost=2,
)


def test_every_way_to_measure_has_a_file_of_its_own(tmp_path: Path) -> None:
    def place(version: str = "trained", tasks: str = "", samples: int = 0, *settings: str) -> str:
        asked = Namespace(version=version, greedy=False, tasks=tasks, samples=samples, settings=settings)
        found = _place(tmp_path, asked)
        found.parent.mkdir(exist_ok=True)
        found.touch()
        return found.name

    assert place("base") == "base-sampled.json"
    ways = {place(), place(samples=8), place(tasks="jsonl:a.jsonl"), place(tasks="jsonl/a.jsonl"), place("/a/adapters")}
    ways |= {place("/b/adapters"), place("/b_adapters"), place(tasks="x" * 500), place(tasks="x" * 501)}
    assert len(ways) == 9


def test_table_sets_the_two_side_by_side() -> None:
    text = evaluation_text(BASE, TRAINED)
    cells = {row[0]: row[1:] for row in (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())}
    assert "2 held-out tasks, 48 sampled episodes" in text
    assert cells["pipeline"] == ["4 % [1, 14]", "83 % [70, 91]", "+79 points"]
    assert cells["modeler"] == ["31 % [20, 45]", "90 % [78, 95]", "+59 points"]
    assert cells["metric: baseline 0, reference 1"] == ["no submission", "0.61"]
    assert cells["episodes lost, counted failed"] == ["0", "2"]


def test_table_of_one_result_has_no_change() -> None:
    text = evaluation_text(BASE)
    assert "4 % [1, 14]" in text
    assert "trained" not in text
    assert "lost" not in text


@pytest.fixture
def summary() -> Summary:
    return Summary(
        name="quickstart",
        seed=0,
        base=BASE,
        trained=TRAINED,
        steps=10,
        episodes=180,
        train_minutes=8.25,
        adapters={"modeler": "adapters/modeler"},
    )


def test_summary_round_trip(tmp_path: Path, summary: Summary) -> None:
    assert read_summary(tmp_path / "run") is None
    path = write_summary(tmp_path / "run", summary)
    plain = json.loads(path.read_text())
    assert plain["base"]["success"] == 0.0417
    assert plain["trained"]["ci"] == [0.7042, 0.913]
    assert {"steps", "episodes", "train_minutes", "adapters"} <= plain.keys()
    assert read_summary(tmp_path / "run") == summary
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, summary: Summary) -> None:
    path = write_summary(tmp_path, summary)
    with pytest.raises(TypeError):
        replace_file(path, "not bytes")  # type: ignore[arg-type]
    assert read_summary(tmp_path) == summary
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_damaged_summary_is_named(tmp_path: Path, summary: Summary) -> None:
    path = write_summary(tmp_path, summary)
    path.write_bytes(msgspec.json.encode({"name": 3}))
    with pytest.raises(JournalError, match=r"summary.json is not a run's summary"):
        read_summary(tmp_path)
