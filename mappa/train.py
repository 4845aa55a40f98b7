"""Train a team: tasks -> rollouts -> episodes -> samples -> update -> adapters published -> the next rollouts.

    torchrun --standalone --shutdown-timeout=86400 --nproc-per-node=N -m mappa.train CONFIG [key=value ...]

Every rank learns; rank 0 also runs the episodes. The same command continues an interrupted run where it was. The
timeout is what torchrun leaves the ranks after Ctrl-C to finish what is under way: 30 seconds unless told.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mappa.config import Config, available_cores, describe, load_config
from mappa.errors import MappaError

if TYPE_CHECKING:
    from mappa.lead import Lead
    from mappa.learn import Learner
    from mappa.types import Sample


def train(config: Config, *, fresh: bool = False) -> bool:
    """Run `config` to its end, or on to its end; every rank calls it. False if it was asked to stop before (Ctrl-C).

    Raises MappaError; CoachError, with all that was learned saved, if the coach can score no more.
    """
    _use_cores(config)
    from mappa.interrupt import Interrupts
    from mappa.lead import Lead
    from mappa.learn import ranks

    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        lead = stack.enter_context(Lead.open(config, fresh=fresh)) if _rank() == 0 else None
        learner = _start_learner(config, lead)
        saved = learner.steps
        if lead is not None:
            lead.assemble(learner, interrupts)
            lead.evaluate("base")
        samples: list[Sample] | None = []
        for step in range(learner.steps, config.steps):
            shares = lead.roll_out(step, ranks.world_size()) if lead is not None else None
            samples = ranks.scatter(shares)
            if samples is None:  # asked to stop: the episodes are in the journal, unfinished ones as far as they got
                break
            report = learner.step_if_any(samples)
            if lead is not None:
                lead.publish(learner)
                lead.step_done(report)  # first: a checkpoint vouches for the records of the steps it holds
            if learner.steps % config.save_every == 0 or learner.steps == config.steps:
                _save(learner, lead)
                saved = learner.steps
        if samples is None and saved < learner.steps:
            _save(learner, lead)
        finished = samples is not None and (lead is None or lead.evaluate("trained"))
        if lead is not None and finished:
            lead.finish(learner)
        ranks.barrier()  # the others leave only when rank 0 is done, so that nobody ends the job under it
        if lead is not None and not finished:
            lead.check_coach()
        return finished


def _save(learner: Learner, lead: Lead | None) -> None:
    """A checkpoint in the run's folder, in place of the oldest. Collective."""
    from mappa.learn import ranks

    folder = ranks.broadcast(lead.run.checkpoint(learner.steps) if lead is not None else None)
    assert folder is not None
    learner.save(folder)
    if lead is not None:
        lead.run.prune()


def _start_learner(config: Config, lead: Lead | None) -> Learner:
    """The learner, at the run's last sound checkpoint if there is one. Collective."""
    from mappa.learn import Learner, ranks
    from mappa.learn.engine import join
    from mappa.run import learn_settings

    join()  # a checkpoint is looked for first: where there is one, learn.start is not needed any more
    found = ranks.broadcast(lead.run.last_checkpoint() if lead is not None else None)
    new = Learner if found is None else partial(Learner.load, found)
    return new(
        learn_settings(config),
        temperature=config.sampler.temperature,
        total_steps=config.steps,
        faults=Path(config.runs) / config.name / "faults",
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
    parser.add_argument("--unsafe", action="store_true", help="run model-written code WITHOUT isolation")
    parser.add_argument("--dry-run", action="store_true", help="load all but the weights; say what the run needs")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parser.add_argument("--ranks", type=int, default=world, help="with --dry-run: GPUs; default: this launch's")
    parser.add_argument("--gpu-gb", type=float, default=80.0, help="with --dry-run: memory of a GPU, GB")
    options = parser.parse_intermixed_args(arguments)
    overrides = [*options.overrides, *(["sandbox.unsafe=true"] if options.unsafe else [])]
    try:
        config = load_config(options.config, overrides)
        if options.dry_run:
            from mappa.dryrun import dry_run

            print(dry_run(config, ranks=options.ranks, gpu_gb=options.gpu_gb))
            return 0
        finished = train(config, fresh=options.fresh)
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"mappa: the disk is full: {error}; free space and run the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print("mappa: stopped; the same command goes on where this one was", file=sys.stderr, flush=True)
        return 130
    return 0


def _end(status: int) -> NoReturn:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mappa.learn.ranks import leave

        leave(status)
    sys.exit(status)


if __name__ == "__main__":
    _end(main())
