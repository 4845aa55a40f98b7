"""Measuring a team on held-out tasks: no repairs, the tasks' own grader, never the coach.

    python -m mappa.evaluate runs/NAME                        the run's adapters, on its held-out tasks
    python -m mappa.evaluate runs/NAME --version base         the base; a step, or a folder of adapters, likewise
    python -m mappa.evaluate CONFIG.toml --version base       the base, before anything is trained
    python -m mappa.evaluate runs/NAME evaluate.temperature=0.2    with other settings than the run's own
    python -m mappa.evaluate runs/NAME --against FILE.json    beside an earlier result, with a paired test

No coach has a part in it. Intervals are bootstrapped over tasks: episodes of one task are alike.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec
import torch
from msgspec.structs import replace

from mappa.config import Config, LearnConfig, available_cores, cache_home, config_from, load_config, override
from mappa.errors import ConfigError, MappaError
from mappa.journal import Journal
from mappa.learn.adapters import check_alpha, read_adapter
from mappa.model.base import load_base
from mappa.model.lora import Adapter, RoleLinear, add_roles, new_adapter
from mappa.observe.evaluation import EvaluationResult, contamination_text, evaluation_text, losses_text, paired_lines
from mappa.observe.measures import Values, habit_values, habits, measures, rate, succeeded, values_of
from mappa.observe.summary import replace_file
from mappa.rollout.scheduler import Job
from mappa.rollout.stage import derive_seed
from mappa.rollout.team import Team
from mappa.systems import System, adapters_of, team_of
from mappa.tasks import TaskSet, measured_on, prepare
from mappa.types import Episode, Role, Task

Mode = Literal["sampled", "greedy"]

LONGEST_NAME = 180
"""Characters that a result's file name takes of what was asked; a file system takes 255 bytes."""


def evaluate(
    team: Team,
    tasks: Sequence[Task],
    roles: Sequence[Role],
    config: Config,
    *,
    phase: str,
    mode: Mode,
    done: Callable[[Episode], None] = lambda episode: None,
) -> EvaluationResult | None:
    """Run the team on every task, `evaluate.samples` times or once greedily, with the adapters last published.

    What the journal has of it is not run again. None if the team was drained meanwhile.
    """
    samples = config.evaluate.samples if mode == "sampled" else 1
    jobs = [
        Job(
            id=f"{phase}-{mode}-{task.id}-{index}",
            task=task,
            seed=derive_seed(config.seed, "evaluate", mode, task.id, index),
            step=0,
        )
        for task in tasks
        for index in range(samples)
    ]
    temperature = config.evaluate.temperature if mode == "sampled" else 0.0
    key = f"{phase}-{mode}"
    team.begin(key, jobs, phase=phase, temperature=temperature, repair=False, score=False, done=done)
    episodes = team.finish(key)
    if episodes is None:
        return None
    return summarise(episodes, tasks, [role.name for role in roles], mode)


def summarise(episodes: Sequence[Episode], tasks: Sequence[Task], roles: Sequence[str], mode: Mode) -> EvaluationResult:
    """Success of the pipeline and of each role, and all measures, with intervals over tasks; a lost episode is a
    failure."""
    by_task = [[episode for episode in episodes if episode.task == task.id] for task in tasks]
    pipeline = [[succeeded(episode) for episode in group] for group in by_task]
    metrics = [
        episode.outcome.metrics["normalised"]
        for episode in episodes
        if episode.outcome is not None and "normalised" in episode.outcome.metrics
    ]
    success, low, high = rate(pipeline)
    parts = {role: [[_did_its_part(e, role) for e in group] for group in by_task] for role in roles}
    ways = {f"{role}: {name}": values for role in roles for name, values in habit_values(by_task, role).items()}
    every: dict[str, Values] = values_of(by_task) | parts | ways
    return EvaluationResult(
        mode=mode,
        success=success,
        ci=(low, high),
        roles={role: rate(part) for role, part in parts.items()},
        tasks={task.id: fmean(values) for task, values in zip(tasks, pipeline, strict=True)},
        metric_mean=fmean(metrics) if metrics else None,
        episodes=len(episodes),
        lost=sum(episode.error is not None for episode in episodes),
        losses=_losses(episodes),
        cut=sum(episode.cut for episode in episodes),
        repaired=sum(action.repaired for episode in episodes for action in episode.actions),
        measures=measures(by_task),
        habits={role: habits(by_task, role) for role in roles},
        by_task={name: _means(tasks, values) for name, values in every.items()},
    )


def with_sources(result: EvaluationResult, tasks: TaskSet) -> EvaluationResult:
    """The result with what is known of its tasks: how many were refused, and which overlap with training tasks."""
    return replace(result, refused=len(tasks.refused), overlaps=tuple(tasks.shared_in_words()))


def _means(tasks: Sequence[Task], values: Values) -> dict[str, float]:
    return {task.id: fmean(found) for task, found in zip(tasks, values, strict=True) if found}


def _losses(episodes: Sequence[Episode]) -> dict[str, str]:
    lost: dict[str, list[str]] = {}
    for episode in episodes:
        if episode.error is not None:
            lost.setdefault(episode.task, []).append(episode.error)
    return {task: f"{len(errors)} lost: {errors[0]}" for task, errors in lost.items()}


def _did_its_part(episode: Episode, role: str) -> bool:
    """The role's last action succeeded."""
    evidence = [action.evidence for action in episode.actions if action.role == role]
    return bool(evidence) and evidence[-1] is not None and evidence[-1].success


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mappa.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a run, or the TOML file of one that has not begun")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to measure with, as for training")
    parser.add_argument(
        "--version",
        default="trained",
        help="'trained' (default), 'base', a step with a checkpoint, a folder of adapters",
    )
    parser.add_argument("--samples", type=int, default=0, help="sampled episodes per task; 0: as the run's config says")
    parser.add_argument("--greedy", action="store_true", help="one greedy episode per task instead of samples")
    parser.add_argument("--tasks", default="", help="another source for the held-out tasks, such as jsonl:aime25.jsonl")
    parser.add_argument(
        "--against", type=Path, help="JSON of an earlier evaluation: both are shown, with a paired test"
    )
    parser.add_argument("--json", type=Path, help="where the result goes; default: evaluations/ in the run's folder")
    options = parser.parse_intermixed_args(arguments)
    try:
        before = _read_result(options.against) if options.against else None
        config = _config_of(options)
        folder = Path(config.runs) / config.name if options.run.suffix == ".toml" else options.run
        result = _evaluate_run(config, folder, options)
        place = options.json or _place(folder, options)
        replace_file(place, msgspec.json.format(msgspec.json.encode(result), indent=2))
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr)
        return 2
    print(evaluation_text(before or result, result if before else None), end="")
    if before is not None:
        print(*paired_lines(before, result), sep="\n")
    if result.losses:
        print(losses_text(result))
    print(contamination_text(result))
    print(f"{result.refused} tasks of the source could not be used; written to {place}")
    return 0


def _place(folder: Path, options: argparse.Namespace) -> Path:
    """A name of its own for whatever was asked: what was measured otherwise must stay."""
    parts = [f"{options.version}-{'greedy' if options.greedy else 'sampled'}", *options.settings]
    parts += [f"tasks={options.tasks}"] if options.tasks else []
    parts += [f"samples={options.samples}"] if options.samples else []
    asked = ",".join(parts)
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", asked).strip("_")[:LONGEST_NAME]
    if name != asked:  # two that differ in what a file name cannot hold stay two
        name = f"{name}-{hashlib.sha256(asked.encode()).hexdigest()[:10]}"
    return folder / "evaluations" / f"{name}.json"


def _read_result(path: Path) -> EvaluationResult:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is not an evaluation's JSON: {error}") from None


def adapters_folder(run: Path, version: str) -> Path:
    """Where the adapters of a version lie: the run's last ones, a checkpoint's, or a folder. Raises ConfigError."""
    if version == "trained":
        found = run / "adapters"
        checkpoints = sorted((run / "checkpoints").glob("step-*"))
        if not found.is_dir() and checkpoints:  # the run has not come to its end
            found = checkpoints[-1] / "adapters"
    elif version.isdecimal():
        found = run / "checkpoints" / f"step-{int(version):06d}" / "adapters"
    else:
        found = Path(version).expanduser()
    if not found.is_dir():
        kept = [path.name for path in sorted((run / "checkpoints").glob("step-*"))]
        raise ConfigError(f"no adapters at {found}; this run keeps the checkpoints {', '.join(kept) or '(none)'}")
    return found


def _config_of(options: argparse.Namespace) -> Config:
    """The run's own, or that of a file for a run that has not begun, with what the command line says."""
    if options.run.suffix == ".toml":
        config = load_config(options.run)
    else:
        try:
            raw = msgspec.json.decode((options.run / "config.json").read_bytes())
        except OSError:
            raise ConfigError(f"{options.run} is not the folder of a run: config.json is missing") from None
        config = config_from(raw, where=str(options.run))
    samples = [f"evaluate.samples={options.samples}"] if options.samples else []
    return override(config, [*options.settings, *samples])


def _evaluate_run(config: Config, folder: Path, options: argparse.Namespace) -> EvaluationResult:
    mode: Mode = "greedy" if options.greedy else "sampled"
    if mode == "sampled" and not config.evaluate.samples:
        raise ConfigError("evaluate.samples=0 leaves nothing to measure; give --samples N or --greedy")
    tasks, system = prepare(config.tasks, cache_home()), team_of(config)
    if options.tasks:
        tasks = measured_on(tasks, options.tasks, cache_home())
    for line in tasks.notes():
        print(line, file=sys.stderr)
    place = None if options.version == "base" else adapters_folder(folder, options.version)
    base = load_base(config.model, config.dtype)
    learn = config.learn
    router, layers = add_roles(base.model, learn.targets, learn.first_layer, learn.alpha / learn.rank)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("evaluation.sqlite*"):
        old.unlink()  # measured again means again
    threads = config.threads or available_cores()
    with (
        Journal(folder / "evaluation.sqlite") as journal,
        Team(config, system, base, router, layers, journal, threads=threads) as team,
    ):
        team.publish(0, _adapters(place, system, layers, learn))
        result = evaluate(team, tasks.heldout, system.roles, config, phase=Path(options.version).name, mode=mode)
    assert result is not None, "nobody drains this team"
    return with_sources(result, tasks)


def _adapters(
    place: Path | None, system: System, layers: Mapping[str, RoleLinear], learn: LearnConfig
) -> Mapping[str, Adapter]:
    """Those at `place`; where there is none, new ones, which add nothing to the base."""
    if place is not None:
        for name in adapters_of(system):
            check_alpha(place / name, learn)
        return {name: read_adapter(place / name) for name in adapters_of(system)}
    return dict.fromkeys(adapters_of(system), new_adapter(layers, learn.rank, torch.Generator().manual_seed(0)))


if __name__ == "__main__":
    sys.exit(main())
