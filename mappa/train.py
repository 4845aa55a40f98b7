"""Train a team: tasks -> rollouts -> episodes -> samples -> update -> adapters published -> the next rollouts.

    torchrun --standalone --nproc-per-node=N -m mappa.train CONFIG [key=value ...]

Every rank learns; rank 0 also runs the episodes. The same command continues an interrupted run from its last step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mappa.config import Config, LearnConfig, RoleLearnConfig, available_cores, describe, load_config
from mappa.errors import MappaError

if TYPE_CHECKING:
    from mappa.lead import Lead
    from mappa.learn import Learner


def train(config: Config, *, fresh: bool = False) -> None:
    """Run `config` to its end, or on to its end; every rank calls it. Raises MappaError."""
    _use_cores(config)
    from mappa.lead import Lead
    from mappa.learn import ranks

    with ExitStack() as stack:
        lead = stack.enter_context(Lead.open(config, fresh=fresh)) if _rank() == 0 else None
        learner = _start_learner(config, lead)
        if lead is not None:
            lead.assemble(learner)
            lead.evaluate("base")
        for step in range(learner.steps, config.steps):
            shares = lead.roll_out(step, ranks.world_size()) if lead is not None else None
            report = learner.step(ranks.scatter(shares))
            if lead is not None:
                lead.publish(learner)
                lead.step_done(report)  # first: a checkpoint vouches for the records of the steps it holds
            if learner.steps % config.save_every == 0 or learner.steps == config.steps:
                folder = ranks.broadcast(lead.run.checkpoint(learner.steps) if lead is not None else None)
                assert folder is not None
                learner.save(folder)
                if lead is not None:
                    lead.run.prune()
        if lead is not None:
            lead.evaluate("trained")
            lead.finish(learner)
        ranks.barrier()  # the others leave only when rank 0 is done, so that nobody ends the job under it


def _start_learner(config: Config, lead: Lead | None) -> Learner:
    """The learner, at the run's last sound checkpoint if there is one. Collective."""
    from mappa.learn import Learner, checkpoint, ranks

    learner = Learner(
        learn_settings(config),
        temperature=config.sampler.temperature,
        total_steps=config.steps,
        faults=Path(config.runs) / config.name / "faults",
    )
    found = ranks.broadcast(lead.run.last_checkpoint() if lead is not None else None)
    if found is not None:
        checkpoint.restore(learner, found)
    return learner


def learn_settings(config: Config) -> LearnConfig:
    """The learner's settings as the run has them: its base, and the adapters of its system's roles."""
    from mappa.systems import adapters_of, frozen_adapters, load_system

    system = load_system(config.system)
    own = {
        name: replace(config.learn.role.get(name, RoleLearnConfig()), frozen=True) for name in frozen_adapters(system)
    }
    return replace(
        config.learn,
        model=config.model,
        dtype=config.dtype,
        roles=adapters_of(system),
        role=config.learn.role | own,
        seed=config.seed,
    )


def _use_cores(config: Config) -> None:
    """Divide the cores among the ranks of this node, before anything starts a thread pool."""
    ranks, cores = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), available_cores()
    if ranks > cores and _rank() == 0:
        print(f"mappa: warning: {ranks} ranks share {cores} cores; a rank per core at most is faster", file=sys.stderr)
    threads = config.threads or max(1, cores // ranks)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mappa.train",
        description="Train a team of LLM agents.",
        epilog=f"every key of CONFIG, for the file and for key=value:\n\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file, such as configs/quickstart.toml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, such as learn.lr=1e-4 seed=1")
    parser.add_argument("--fresh", action="store_true", help="start over: delete what the run's folder holds")
    parser.add_argument(
        "--unsafe", action="store_true", help="run model-written code WITHOUT isolation (sandbox.unsafe=true)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="load all but the weights, say what the run needs, and end"
    )
    parser.add_argument("--ranks", type=int, default=0, help="with --dry-run: GPUs of the run; default: this launch's")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="with --dry-run: memory of a GPU, GB")
    options = parser.parse_args(arguments)
    overrides = [*options.overrides, *(["sandbox.unsafe=true"] if options.unsafe else [])]
    try:
        config = load_config(options.config, overrides)
        if options.dry_run:
            from mappa.dryrun import dry_run

            ranks = options.ranks or int(os.environ.get("WORLD_SIZE", "1"))
            print(dry_run(config, learn_settings(config), ranks=ranks, gpu_gb=options.gpu_gb))
        else:
            train(config, fresh=options.fresh)
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("mappa: stopped; the same command continues from the last finished step", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
