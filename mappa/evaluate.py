"""Measuring a team on held-out tasks: no repairs, the tasks' own grader, never the coach.

python -m mappa.evaluate runs/NAME          measures a finished run's adapters again
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec

from mappa.config import Config, available_cores, cache_home, config_from
from mappa.errors import ConfigError, MappaError
from mappa.observe.evaluation import EvaluationResult, Share, evaluation_text
from mappa.observe.statistics import success_interval
from mappa.rollout.scheduler import Job
from mappa.rollout.stage import derive_seed
from mappa.rollout.team import Team
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
    team.begin(f"{phase}-{mode}", jobs, phase=phase, temperature=temperature, repair=False, done=done)
    episodes = team.finish(f"{phase}-{mode}")
    if episodes is None:
        return None
    return summarise(episodes, tasks, [role.name for role in roles], mode)


def summarise(episodes: Sequence[Episode], tasks: Sequence[Task], roles: Sequence[str], mode: Mode) -> EvaluationResult:
    """Success of the pipeline and of each role with intervals over tasks; a lost episode is a failure."""
    by_task = [[episode for episode in episodes if episode.task == task.id] for task in tasks]
    pipeline = [[_succeeded(episode) for episode in group] for group in by_task]
    metrics = [
        episode.outcome.metrics["normalised"]
        for episode in episodes
        if episode.outcome is not None and "normalised" in episode.outcome.metrics
    ]
    success, low, high = _share(pipeline)
    return EvaluationResult(
        mode=mode,
        success=success,
        ci=(low, high),
        roles={role: _share([[_did_its_part(e, role) for e in group] for group in by_task]) for role in roles},
        tasks={task.id: fmean(values) for task, values in zip(tasks, pipeline, strict=True)},
        metric_mean=fmean(metrics) if metrics else None,
        episodes=len(episodes),
        lost=sum(episode.error is not None for episode in episodes),
        repaired=sum(action.repaired for episode in episodes for action in episode.actions),
    )


def _succeeded(episode: Episode) -> bool:
    return episode.outcome is not None and episode.outcome.success


def _did_its_part(episode: Episode, role: str) -> bool:
    """The role's last action succeeded."""
    evidence = [action.evidence for action in episode.actions if action.role == role]
    return bool(evidence) and evidence[-1] is not None and evidence[-1].success


def _share(per_task: Sequence[Sequence[bool]]) -> Share:
    low, high = success_interval(per_task)
    return fmean(value for values in per_task for value in values), low, high


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mappa.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--greedy", action="store_true", help="one greedy episode per task instead of samples")
    options = parser.parse_args(arguments)
    try:
        result = _evaluate_run(options.run, "greedy" if options.greedy else "sampled")
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr)
        return 2
    print(evaluation_text(result), end="")
    return 0


def _evaluate_run(folder: Path, mode: Mode) -> EvaluationResult:
    from mappa.journal import Journal
    from mappa.learn.adapters import read_adapter
    from mappa.model.base import load_base
    from mappa.model.lora import add_roles
    from mappa.systems import load_system
    from mappa.tasks import prepare

    try:
        config = config_from(msgspec.json.decode((folder / "config.json").read_bytes()), where=str(folder))
    except OSError:
        raise ConfigError(f"{folder} is not the folder of a run: config.json is missing") from None
    tasks, system = prepare(config.tasks.source, cache_home()).heldout, load_system(config.system)
    base = load_base(config.model, config.dtype)
    learn = config.learn
    router, layers = add_roles(base.model, learn.targets, learn.first_layer, learn.alpha / learn.rank)
    adapters = {role.name: read_adapter(folder / "adapters" / role.name) for role in system.roles}
    threads = config.threads or available_cores()
    path = folder / "evaluation.sqlite"
    for old in folder.glob("evaluation.sqlite*"):
        old.unlink()  # measured again means again
    with (
        Journal(path) as journal,
        Team(config, system, base, router, layers, journal, threads=threads) as team,
    ):
        team.publish(0, adapters)
        result = evaluate(team, tasks, system.roles, config, phase="again", mode=mode)
        assert result is not None, "nobody drains this team"
        return result


if __name__ == "__main__":
    sys.exit(main())
