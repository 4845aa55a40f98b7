"""Measuring a team on held-out tasks: no repairs, the tasks' own grader, never the coach.

    python -m mappa.evaluate runs/NAME                        the run's adapters, on its held-out tasks
    python -m mappa.evaluate runs/NAME --version base         the base; a step, or a folder of adapters, likewise
    python -m mappa.evaluate runs/NAME --against FILE.json    beside an earlier result, with a paired test

No coach has a part in it. Intervals are bootstrapped over tasks: episodes of one task are alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec
from msgspec.structs import replace

from mappa.config import Config, available_cores, cache_home, config_from
from mappa.errors import ConfigError, MappaError
from mappa.observe.evaluation import EvaluationResult, contamination_text, evaluation_text, paired_text
from mappa.observe.measures import habits, measures, rate, succeeded
from mappa.observe.summary import replace_file
from mappa.rollout.scheduler import Job
from mappa.rollout.stage import derive_seed
from mappa.rollout.team import Team
from mappa.tasks import TaskSet
from mappa.types import Episode, Role, Task

Mode = Literal["sampled", "greedy"]


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
    return EvaluationResult(
        mode=mode,
        success=success,
        ci=(low, high),
        roles={role: rate([[_did_its_part(e, role) for e in group] for group in by_task]) for role in roles},
        tasks={task.id: fmean(values) for task, values in zip(tasks, pipeline, strict=True)},
        metric_mean=fmean(metrics) if metrics else None,
        episodes=len(episodes),
        lost=sum(episode.error is not None for episode in episodes),
        repaired=sum(action.repaired for episode in episodes for action in episode.actions),
        measures=measures(by_task),
        habits={role: habits(by_task, role) for role in roles},
    )


def with_sources(result: EvaluationResult, tasks: TaskSet) -> EvaluationResult:
    """The result with what is known of its tasks: how many were refused, and which overlap with training tasks."""
    overlaps = tuple(f"{o.heldout} and {o.train}: {o.how}, {100 * o.share:.0f} %" for o in tasks.overlaps)
    return replace(result, refused=len(tasks.refused), overlaps=overlaps)


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
    parser.add_argument("run", type=Path, help="folder of a run")
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
    options = parser.parse_args(arguments)
    try:
        before = _read_result(options.against) if options.against else None
        result = _evaluate_run(options)
        place = options.json or _place(options)
        replace_file(place, msgspec.json.format(msgspec.json.encode(result), indent=2))
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr)
        return 2
    print(evaluation_text(before or result, result if before else None), end="")
    if before is not None:
        print(paired_text(before, result))
    print(contamination_text(result))
    print(f"{result.refused} tasks of the source could not be used; written to {place}")
    return 0


def _place(options: argparse.Namespace) -> Path:
    version = Path(options.version).name
    return options.run / "evaluations" / f"{version}-{'greedy' if options.greedy else 'sampled'}.json"


def _read_result(path: Path) -> EvaluationResult:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is not an evaluation's JSON: {error}") from None


def adapters_folder(run: Path, version: str) -> Path:
    """Where the adapters of a version lie: the run's last ones, a checkpoint's, or a folder. Raises ConfigError."""
    if version in ("trained", "base"):
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


def _evaluate_run(options: argparse.Namespace) -> EvaluationResult:
    from mappa.journal import Journal
    from mappa.learn.adapters import read_adapter
    from mappa.model.base import load_base
    from mappa.model.lora import add_roles
    from mappa.systems import adapters_of, team_of
    from mappa.tasks import prepare

    folder: Path = options.run
    mode: Mode = "greedy" if options.greedy else "sampled"
    try:
        config = config_from(msgspec.json.decode((folder / "config.json").read_bytes()), where=str(folder))
    except OSError:
        raise ConfigError(f"{folder} is not the folder of a run: config.json is missing") from None
    if options.tasks:
        config = replace(config, tasks=replace(config.tasks, heldout=options.tasks))
    if options.samples:
        config = replace(config, evaluate=replace(config.evaluate, samples=options.samples))
    tasks, system = prepare(config.tasks, cache_home()), team_of(config)
    place = adapters_folder(folder, options.version)
    base = load_base(config.model, config.dtype)
    learn = config.learn
    router, layers = add_roles(base.model, learn.targets, learn.first_layer, learn.alpha / learn.rank)
    adapters = {name: read_adapter(place / name) for name in adapters_of(system)}
    if options.version == "base":  # an adapter whose B is zero adds nothing
        adapters = {role: {name: (a, b * 0) for name, (a, b) in adapter.items()} for role, adapter in adapters.items()}
    threads = config.threads or available_cores()
    path = folder / "evaluation.sqlite"
    for old in folder.glob("evaluation.sqlite*"):
        old.unlink()  # measured again means again
    with (
        Journal(path) as journal,
        Team(config, system, base, router, layers, journal, threads=threads) as team,
    ):
        team.publish(0, adapters)
        result = evaluate(team, tasks.heldout, system.roles, config, phase=Path(options.version).name, mode=mode)
    assert result is not None, "nobody drains this team"
    return with_sources(result, tasks)


if __name__ == "__main__":
    sys.exit(main())
