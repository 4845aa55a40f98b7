"""How samples are spread over ranks, and how a stage divides what it holds, changes nothing but rounding."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from mappa.learn import Learner, ranks
from tests.learn.helpers import Reference, relative_error
from tests.learn.spread import STEPS, VARIANTS, all_samples
from tests.learn.test_learner import settings

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).resolve().parents[2]


def torchrun(module: str, *arguments: str, world: int, **variables: str) -> tuple[int, str]:
    """Exit status and output of a program on `world` ranks."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        timeout=1500,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Reference:
    reference = Reference(tiny_model, settings(tiny_model), STEPS)
    for step in range(STEPS):
        reference.step(all_samples(step))
    return reference


@pytest.fixture(scope="module")
def two_ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every variant leaves after its steps on two ranks."""
    out = tmp_path_factory.mktemp("two")
    code, output = torchrun("tests.learn.spread", str(tiny_model), str(out), *VARIANTS, world=2)
    assert code == 0, output[-3000:]
    return out


def check(out: Path, variant: str, world: int, reference: Reference) -> None:
    """All ranks hold the same weights, which are the reference's."""
    first, *others = (torch.load(out / f"{variant}-{world}-{rank}.pt")["adapters"] for rank in range(world))
    assert relative_error(first, reference.adapters) < 2e-4
    for other in others:
        assert relative_error(other, first) == 0


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "first_layer" not in VARIANTS[v]])
def test_two_ranks_equal_the_reference(two_ranks: Path, reference: Reference, variant: str) -> None:
    check(two_ranks, variant, 2, reference)


def test_recomputing_above_a_shared_part_equals_the_reference(two_ranks: Path, tiny_model: Path) -> None:
    partly = Reference(tiny_model, settings(tiny_model, first_layer=1), STEPS)
    for step in range(STEPS):
        partly.step(all_samples(step))
    check(two_ranks, "zero-2-recompute", 2, partly)


def test_a_divided_base_takes_less_room(two_ranks: Path) -> None:
    whole, divided = (torch.load(two_ranks / f"{name}-2-0.pt")["base"] for name in ("zero-3", "zero-3-base"))
    assert divided < 0.2 * whole  # between passes a rank holds its pieces elsewhere, and only small vectors whole


def test_what_two_ranks_saved_goes_on_on_three_and_on_one(
    two_ranks: Path, tiny_model: Path, reference: Reference, tmp_path: Path
) -> None:
    variants = ("zero-2", f"zero-1={two_ranks / 'zero-2-2'}", f"zero-3={two_ranks / 'zero-0-2'}")
    code, output = torchrun("tests.learn.spread", str(tiny_model), str(tmp_path), *variants, world=3)
    assert code == 0, output[-3000:]
    for variant in ("zero-2", "zero-1", "zero-3"):
        check(tmp_path, variant, 3, reference)
    alone = Learner.load(two_ranks / "zero-3-2", settings(tiny_model), total_steps=STEPS)
    assert alone.steps == 4
    for step in range(4, STEPS):
        alone.step(all_samples(step))
    assert relative_error(alone.adapters, reference.adapters) < 2e-4


def test_ranks_that_were_started_differently_say_so(tiny_model: Path) -> None:
    code, output = torchrun("tests.learn.disagree", str(tiny_model), world=2)
    assert code != 0
    assert output.count("LearnError: the ranks were started with different settings: lr, rank") == 2, output[-3000:]


def test_waiting_for_rank_0_has_no_deadline_to_speak_of() -> None:
    """With DeepSpeed's own limit of minutes at 0, which every pause of rank 0 exceeds."""
    code, output = torchrun("tests.learn.waiting", world=2, DEEPSPEED_TIMEOUT="0")
    assert code == 0, output[-3000:]
    assert timedelta(days=2) <= ranks.PATIENCE
    for rank in range(2):
        assert f"rank {rank} was there, and waits for {{{ranks.PATIENCE!r}}}" in output


def test_a_foreign_loss_that_fails_on_one_rank_stops_all(tiny_model: Path) -> None:
    code, output = torchrun("tests.learn.failing_loss", str(tiny_model), world=2)
    assert code == 0, output[-3000:]
    for rank in range(2):
        # The ranks share the pipe: a line may begin behind what the other one has begun.
        first, second = re.findall(rf"rank {rank} after .*?(?=rank \d after |$)", output, re.MULTILINE)
        assert "one per action token" in first and "the update was not made" in first
        assert "load the last checkpoint to go on" in second
