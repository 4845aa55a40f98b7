"""How many GPU-hours a config takes: simulated on a node of GPUs, measured on this machine, one against the other.

    python -m bench.profile CONFIG --simulate [key=value ...]        the real loop and packer on a virtual clock
    python -m bench.profile CONFIG [key=value ...]                   a few real steps here
    python -m bench.profile CONFIG --fit RUN_A --against RUN_B       costs of one run predict another's steps
    python -m bench.profile [--quick] [--json PATH]                  the paper's configs, simulated

--simulate prints hours, dollars, busy shares, memory and a Gantt of the config as it is, searches for better settings,
and compares with the design that was published with the method. Nothing it prints of a GPU was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench.harness import Row, environment, finish, parser
from bench.parts.profile_design import Design, causes, design_of, overlapped
from bench.parts.profile_fit import Past
from bench.parts.profile_measure import measured_rows
from bench.parts.profile_node import Node, node_from
from bench.parts.profile_replay import calibrated, prediction_rows
from bench.parts.profile_report import chain_rows, facts, gain, gantt, listed, memory_text, ranking, record, trace
from bench.parts.profile_result import History, Simulated
from bench.parts.profile_search import Candidate, attempt, search
from bench.parts.profile_simulation import Job, simulate
from bench.parts.profile_workload import Workload, habits_of
from mappa.config import Config, cache_home, describe, load_config, override
from mappa.dryrun import KNOWN, model_shape
from mappa.errors import MappaError
from mappa.systems import team_of
from mappa.tasks import prepare

GOALS = {"mappa.systems.dsbench:DSBench": ">= 3"}
"""How many times the published design's episodes per GPU and hour, by system."""
ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs/quickstart.toml"
PAPER = [ROOT / f"configs/{name}-qwen3-4b-8gpu.toml" for name in ("dsbench", "mathchat")]
"""Simulated where no CONFIG is given."""


def main() -> None:
    options = _options()
    env = environment()
    try:
        rows, more = _rows(options)
    except MappaError as error:
        sys.exit(f"profile: {error}")
    finish("profile", rows, options.json, env, more)


def _rows(options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and what the JSON file has besides. --quick without --simulate: also a few steps of a tiny model."""
    if options.fit is not None:
        return prediction_rows(calibrated(Past.read(options.fit)), Past.read(options.against)), {}
    rows: list[Row] = []
    more: dict[str, Any] = {}
    if options.simulate or options.config is None:
        for path in [options.config] if options.config else PAPER[:1] if options.quick else PAPER:
            config = load_config(path, options.overrides)
            found, more[config.name] = simulated(options, config)
            rows += [dataclasses.replace(row, what=f"{config.name}, {row.what}") for row in found]
    if options.quick and not options.simulate:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measured(options, QUICKSTART, _tiny(Path(folder)), 2)
    elif not rows:
        rows += _measured(options, options.config, options.overrides, options.steps or 2)
    return rows, {"simulated": more} if more else {}


def simulated(options: argparse.Namespace, config: Config) -> tuple[list[Row], dict[str, Any]]:
    """The config as it is, the best settings found, and these against the published design. Prints pictures and
    rankings as it goes. --quick: fewer episodes, and in place of a search the settings that DESIGN.md has."""
    config = override(config, ["rollout.episodes=2"]) if options.quick else config
    job, tasks = _job(options, config), _tasks(options, config)
    rows: list[Row] = []
    shown: dict[str, Simulated] = {}
    everywhere = Candidate(tuple(overlapped(config, range(job.node.gpus))), job.node.gpus)
    if not options.quick:
        design = design_of(config, job.node, options.ranks or job.node.gpus, "as configured")
        shown["as configured"], history = simulate(job, design)
        _show(job, design, shown["as configured"], history)
        rows += facts(job, shown["as configured"], tasks)
    tried = search(job, everywhere) if options.search and not options.quick else [attempt(job, everywhere)]
    print("", *ranking(tried), sep="\n")
    best = tried[0].candidate
    job = replace(job, config=override(config, list(best.settings)))
    for cause, design in causes(job.config, job.system, job.node, design_of(job.config, job.node, best.ranks)):
        shown[cause], history = simulate(job, design)
    _show(job, design, shown[cause], history)
    if options.trace is not None:
        options.trace.write_bytes(trace(history))
    chain = [(name, result) for name, result in shown.items() if name != "as configured"]
    goal = "" if options.quick else GOALS.get(config.system, "")
    rows += [*facts(job, chain[-1][1], tasks), gain(chain[-1][1], chain[0][1], goal), *chain_rows(chain)]
    rows += [
        gain(one.result, chain[0][1]) for one in tried[1:] if one.candidate == everywhere and one.result is not None
    ]
    return rows, {"designs": {name: record(result) for name, result in shown.items()}, "tried": listed(tried)}


def _show(job: Job, design: Design, result: Simulated, history: History) -> None:
    print("", *memory_text(job, design), *gantt(result, history), sep="\n")


def _job(options: argparse.Namespace, config: Config) -> Job:
    system = team_of(config)
    habits = habits_of(config.system, options.journal / "journal.sqlite" if options.journal is not None else None)
    workload = Workload(config, system.roles, habits)
    known = KNOWN.get(config.model.lower())  # first, so that no hub is asked
    return Job(
        config=config,
        system=system,
        shape=known or model_shape(config.model)[0],
        node=node_from(options.node),
        workload=workload,
        tasks=workload.tasks(_tasks(options, config)),
        steps=options.steps or (1 if options.quick else 4),
    )


def _tasks(options: argparse.Namespace, config: Config) -> int:
    """Of an epoch; where the config takes all that its source has, they are counted."""
    return options.tasks or config.tasks.train_tasks or len(prepare(config.tasks, cache_home()).train)


def _measured(options: argparse.Namespace, path: Path, overrides: Sequence[str], steps: int) -> list[Row]:
    return measured_rows(path, overrides, steps=steps, ranks=options.ranks or 1, peak=options.peak_flops)


def _tiny(folder: Path) -> list[str]:
    """A tiny random model, for a team whose code works by chance."""
    model = import_module("tests.tiny").write_tiny_model(folder / "model")
    small = ["dtype=float32", "system=tests.teams:CoinTeam", "rollout.episodes=2", "tasks.train_tasks=2"]
    return [f"model={model}", *small, "learn.rank=4", "learn.first_layer=1"]


def _options() -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0])
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.epilog = f"the node, for --node KEY=VALUE:\n\n{describe(Node)}"
    made.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="default: simulate the paper's")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    made.add_argument("--simulate", action="store_true", help="on a node of GPUs that is not there")
    made.add_argument("--search", action=argparse.BooleanOptionalAction, default=True, help="for better settings")
    made.add_argument("--steps", type=int, default=0, help="measured steps; default: 4 simulated, 2 real ones")
    made.add_argument("--ranks", type=int, default=0, help="that learn; default: all GPUs of the node, one here")
    made.add_argument("--tasks", type=int, default=0, help="training tasks of an epoch; default: the config's")
    made.add_argument("--journal", type=Path, metavar="RUN", help="draw lengths and latencies from its journal")
    made.add_argument("--node", action="append", default=[], metavar="KEY=VALUE", help="another node; see below")
    made.add_argument(
        "--trace", type=Path, metavar="PATH", help="write the best settings' timeline for ui.perfetto.dev"
    )
    made.add_argument("--peak-flops", type=float, default=0.0, help="of a rank, for MFU; default: a matrix product's")
    made.add_argument("--fit", type=Path, metavar="RUN_A", help="fit costs on this run, and predict --against")
    made.add_argument("--against", type=Path, metavar="RUN_B", help="the run whose steps are predicted")
    options = made.parse_args()
    if (options.fit is None) != (options.against is None):
        made.error("--fit RUN_A and --against RUN_B go together")
    return options


if __name__ == "__main__":
    main()
