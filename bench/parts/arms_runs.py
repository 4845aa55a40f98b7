"""The runs of bench/arms.py: each is a process of its own, goes on where it was stopped, and is done once."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mappa.observe.evaluation import EvaluationResult
from mappa.observe.metrics import FILE_NAME as METRICS
from mappa.observe.metrics import read_metrics
from mappa.observe.summary import FILE_NAME, Summary, read_summary, replace_file

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """What all runs have in common."""

    config: Path
    runs: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A finished run. `curve` holds (training episodes so far, what was measured then), the base first."""

    arm: str
    seed: int
    curve: tuple[tuple[int, EvaluationResult], ...]
    training: tuple[float | None, ...]
    """Share of each step's training episodes that succeeded."""
    training_minutes: float
    """Wall time of its steps."""
    cpu_minutes: float
    """Of all its processes, held-out measurements included."""

    @property
    def base(self) -> EvaluationResult:
        return self.curve[0][1]

    @property
    def trained(self) -> EvaluationResult:
        return self.curve[-1][1]


def run(plan: Plan, arm: str, seed: int, overrides: Sequence[str], *, same_base: str = "") -> None:
    """Train one arm with one seed, or on to its end. Raises SystemExit where it does not come to it.

    `same_base` names an arm that begins with the same weights and seed: its measurement of them is taken over.
    """
    name, base = f"{arm}-{seed}", "evaluation-base-sampled.json"
    if (plan.runs / name / FILE_NAME).exists():
        return
    known, own = plan.runs / f"{same_base}-{seed}" / base, plan.runs / name / base
    if same_base and known.exists() and not own.parent.exists():
        own.parent.mkdir(parents=True)
        shutil.copy(known, own)
    print(f"{name}: training", flush=True)
    settings = [f"name={name}", f"seed={seed}", f"runs={plan.runs}", *plan.overrides, *overrides]
    call(plan.runs / name, ["-m", "mappa.train", str(plan.config), *settings])


def call(folder: Path, arguments: Sequence[str]) -> None:
    """Run a Python program; its output goes beside `folder`, and the CPU time it took is added up there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        status, used = _wait(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
    took = cpu_seconds(folder) + used.ru_utime + used.ru_stime
    replace_file(folder.with_suffix(".cpu"), f"{took:.1f}\n".encode())
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{tail}\n{folder.name} stopped; the same command goes on with it ({log})")


def cpu_seconds(folder: Path) -> float:
    """What a run has taken so far, in all its attempts."""
    path = folder.with_suffix(".cpu")
    return float(path.read_text()) if path.exists() else 0.0


def done(runs: Path, arm: str, seed: int) -> Done | None:
    """What a run came to; None while it has not ended."""
    folder = runs / f"{arm}-{seed}"
    summary = read_summary(folder)
    if summary is None:
        return None
    return Done(
        arm=arm,
        seed=seed,
        curve=_curve(folder, summary),
        training=tuple(step.success for step in read_metrics(folder / METRICS)),
        training_minutes=summary.train_minutes,
        cpu_minutes=cpu_seconds(folder) / 60,
    )


def read_result(path: Path) -> EvaluationResult:
    return msgspec.json.decode(path.read_bytes(), type=EvaluationResult)


def _wait(pid: int) -> tuple[int, resource.struct_rusage]:
    try:
        _, status, used = os.wait4(pid, 0)
    except KeyboardInterrupt:  # the run was interrupted too, and brings what is under way to its end
        _, status, used = os.wait4(pid, 0)
    return status, used


def _curve(folder: Path, summary: Summary) -> tuple[tuple[int, EvaluationResult], ...]:
    each = summary.episodes // summary.steps
    mode = summary.base.mode
    found = {0: summary.base, summary.episodes: summary.trained}
    for path in folder.glob(f"evaluation-step-*-{mode}.json"):
        found[int(path.name.split("-")[2]) * each] = read_result(path)
    return tuple(sorted(found.items()))
