"""The memory arithmetic against what a small learner really holds on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa.learn import Learner, ranks
from mappa.learn.memory import (
    DEVICE_PARTS,
    GB,
    REDUCE_BUCKET,
    MemorySettings,
    activation_bytes,
    logprob_bytes,
    predict,
    sharding_saves,
)
from mappa.learn.memory_table import memory_rows, memory_table
from mappa.learn.shape import SHAPES, ModelShape
from mappa.model.base import load_base
from mappa.types import Sample

ROLES = ("engineer", "modeler", "analyst")
ROOT = Path(__file__).resolve().parents[2]
TWO_RANKS = ((1, False), (2, False), (3, False), (3, True))
"""ZeRO stage, and whether the base is divided."""


def samples(tokens: int = 160, action: int = 96, each: int = 2) -> list[Sample]:
    """Samples that share no prefix."""
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            role=role,
            tokens=tuple(torch.randint(2, 260, (tokens,), generator=generator).tolist()),
            spans=((tokens - action, tokens),),
            logprobs=(-5.0,) * action,
            rewards=(float(index),),
        )
        for role in ROLES
        for index in range(each)
    ]


def learner(folder: Path, **changes: Any) -> tuple[Learner, ModelShape, MemorySettings]:
    dtype = changes.setdefault("dtype", "float32")
    # A rank that is whole vectors on every CPU: where it is not, low-rank activations are kept in whole ones.
    config = LearnConfig(model=str(folder), roles=ROLES, rank=16, tokens_per_micro_batch=4096, **changes)
    made = Learner(config)
    settings = replace(MemorySettings.of(config, dtype=dtype, world_size=1), device="cpu", accumulation=False)
    return made, ModelShape.of(made.base.model.config), settings


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each distinct storage, by address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def weights(made: Learner) -> list[torch.Tensor]:
    return [tensor for adapter in made.adapters.values() for pair in adapter.values() for tensor in pair]


@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
@pytest.mark.parametrize("changes", [{}, {"targets": ("q_proj", "down_proj"), "first_layer": 1, "dtype": "bfloat16"}])
def test_base_and_adapters_to_the_byte(family: str, changes: dict, request: pytest.FixtureRequest) -> None:
    made, shape, settings = learner(request.getfixturevalue(family), zero_stage=0, **changes)
    memory = predict(shape, settings)
    assert memory.base == sum(storages(made.base.model.parameters()).values())
    assert memory.adapters == sum(storages(weights(made)).values())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_optimiser_to_the_byte(stage: int, tiny_model: Path) -> None:
    made, shape, settings = learner(tiny_model, zero_stage=stage)
    gradients: dict[int, int] = {}

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        """ZeRO hands over one role's flat gradient at a time, plain data parallelism all gradients at once."""
        for group in optimizer.param_groups:
            gradients.update({id(p): p.grad.nbytes for p in group["params"] if p.grad is not None})

    handle = made.optimizer.register_step_pre_hook(look)
    made.step(samples())
    handle.remove()
    memory = predict(shape, settings)
    states = made.optimizer.state.values()
    assert memory.moments == sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq"))
    assert memory.gradients == sum(gradients.values())
    assert memory.adapters == sum(storages(weights(made)).values())
    updated = storages(p for group in made.optimizer.param_groups for p in group["params"])
    assert memory.masters == (sum(updated.values()) if stage else 0)
    assert not stage or not updated.keys() & storages(weights(made)).keys()


@pytest.mark.timeout(600)
def test_what_zero_leaves_on_each_of_two_ranks_to_the_byte(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [*command, str(tiny_model), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shape = ModelShape.of(load_base(str(tiny_model), "bfloat16").model.config)
    for rank in range(2):
        measured = json.loads((tmp_path / f"{rank}.json").read_text())
        for (stage, divided), parts in zip(TWO_RANKS, measured, strict=True):
            settings = MemorySettings(rank=16, zero_stage=stage, shard_base=divided, world_size=2, dtype="bfloat16")
            memory = predict(shape, settings)
            assert parts == {name: getattr(memory, name) for name in parts}, (stage, divided)


def measure_two_ranks(folder: Path, out: Path) -> None:
    """Run by torchrun on each of two ranks: what is there after a step, for every case of TWO_RANKS."""
    measured = []
    for stage, divided in TWO_RANKS:
        made, _, _ = learner(folder, zero_stage=stage, shard_base=divided, dtype="bfloat16")
        made.step(samples())
        zero = made._engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
        base = list(made.base.model.parameters())
        parts = [p.ds_tensor for p in base if hasattr(p, "ds_tensor")]  # where it is divided, p is empty or kept whole
        states = made.optimizer.state.values()
        measured.append(
            {
                "base": sum(storages([*base, *parts]).values()),
                "adapters": sum(storages(weights(made)).values()),
                "masters": sum(storages(flat).values()),
                "moments": sum(state[name].nbytes for state in states for name in ("exp_avg", "exp_avg_sq")),
            }
        )
    (out / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(measured))
    torch.distributed.barrier()
    ranks.leave()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
def test_activations(family: str, dtype: str, checkpointing: bool, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    made, shape, settings = learner(folder, zero_stage=0, dtype=dtype, checkpoint_activations=checkpointing)
    constant = storages([*made.base.model.parameters(), *weights(made)]).keys()
    kept: dict[int, torch.Tensor] = {}  # held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in constant:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        report = made.step(samples())
    settings = replace(settings, tokens=report.tokens_computed, scored=report.tokens_trained)
    directions = 4 * report.tokens_trained * shape.hidden
    predicted = activation_bytes(shape, settings)[0] + directions
    if checkpointing:  # the tables of the rotary embedding are then held by Python, not by autograd
        predicted -= settings.tokens * 2 * shape.head_dim * settings.element
    # Checkpointed, so little is kept at all that the numbers per token of the loss show.
    tolerance = 0.04 if checkpointing else 0.01
    assert sum(storages(kept.values()).values()) == pytest.approx(predicted, rel=tolerance)


def test_a_recomputed_layer_keeps_what_a_layer_keeps() -> None:
    shape, settings = SHAPES["8B"], MemorySettings(checkpoint_activations=False)
    more = replace(shape, layers=shape.layers + 1)
    layer = activation_bytes(more, settings)[0] - activation_bytes(shape, settings)[0]
    assert activation_bytes(shape, replace(settings, checkpoint_activations=True))[1] == layer


@pytest.mark.parametrize(("name", "billions"), [("4B", 4.02), ("8B", 8.19), ("14B", 14.77), ("32B", 32.76)])
def test_presets_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    assert sum(SHAPES[name].tensors) / 1e9 == pytest.approx(billions, abs=0.005)


def test_each_stage_divides_what_it_should() -> None:
    shape, settings = SHAPES["8B"], MemorySettings(accumulation=False)
    none, first, second, third = (predict(shape, replace(settings, zero_stage=stage)) for stage in (0, 1, 2, 3))
    assert none.adapters == first.adapters == second.adapters == third.adapters
    assert none.masters == 0 and first.masters * 8 == first.adapters
    assert first.moments * 8 == none.moments == 2 * none.adapters
    assert first.gradients == none.gradients == none.adapters == 8 * second.gradients
    assert predict(shape, replace(settings, zero_stage=2, accumulation=True)).gradients == 2 * second.gradients
    assert none.base == third.base and third.gathered == 0


def test_a_divided_base() -> None:
    shape = SHAPES["32B"]
    settings = MemorySettings(zero_stage=3, shard_base=True)
    memory = predict(shape, settings)
    whole = 2 * sum(shape.tensors)
    assert memory.base == pytest.approx(whole / 8, rel=0.001)
    assert memory.gathered == 2 * shape.vocabulary * shape.hidden
    assert sharding_saves(shape, MemorySettings()) == whole - memory.base - memory.gathered


def test_offloading_moves_the_optimiser() -> None:
    here = predict(SHAPES["4B"], MemorySettings())
    moved = predict(SHAPES["4B"], MemorySettings(offload=True))
    assert here.host == 0 and moved.host > here.masters + here.moments
    assert moved.total == here.total - here.masters - here.moments - here.gradients


def test_roles_add_their_own_bytes_only() -> None:
    three, eight = (predict(SHAPES["8B"], MemorySettings(roles=count)) for count in (3, 8))
    differing = {part for part in DEVICE_PARTS if getattr(three, part) != getattr(eight, part)}
    assert differing == {"adapters", "masters", "gradients", "moments"}
    assert three.buckets == 2 * 4 * REDUCE_BUCKET


def test_no_part_grows_with_tokens_times_vocabulary() -> None:
    small, large = (replace(SHAPES["8B"], vocabulary=n) for n in (20_000, 2_000_000))
    settings = MemorySettings()
    assert logprob_bytes(small, settings) == logprob_bytes(large, settings) < 4 * settings.tokens * 20_000
    assert activation_bytes(small, settings) == activation_bytes(large, settings)


def test_the_table() -> None:
    rows = memory_rows()
    assert [(row.model, row.rank, row.roles) for row in rows] == [
        (model, rank, roles) for model in ("4B", "8B", "14B", "32B") for rank in (16, 64) for roles in (3, 8)
    ]
    assert all(row.fits == (row.memory.total <= 80 * GB) for row in rows)
    lines = memory_table().splitlines()
    assert lines[0].startswith("predicted, not measured") and "8 GPUs" in lines[0]
    assert len([line for line in lines if line.split()[0] in SHAPES]) == 16
    last = next(line for line in reversed(lines) if line.split()[0] == "32B")
    assert f"{rows[-1].memory.total / GB:.2f}" in last.split() and "NO" in last.split()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("q_proj", "lm_head")}, "lm_head"),
        ({"targets": ()}, "targets"),
        ({"first_layer": 36}, "first_layer=36"),
        ({"shard_base": True}, "zero_stage=3"),
        ({"offload": True, "zero_stage": 0}, "offload"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict, message: str) -> None:
    with pytest.raises(LearnError, match=message):
        predict(SHAPES["4B"], MemorySettings(**changes))


def test_biases_it_does_not_know_are_refused(tiny_model: Path) -> None:
    config = load_base(str(tiny_model), "float32").model.config
    config.mlp_bias = True
    with pytest.raises(LearnError, match="biases"):
        ModelShape.of(config)


def test_other_families_are_refused_by_name() -> None:
    from transformers import GPT2Config

    with pytest.raises(LearnError, match="no memory arithmetic for 'gpt2'"):
        ModelShape.of(GPT2Config())


def test_qwen2_has_biases_on_queries_keys_and_values() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.tiny import SHAPE

    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    assert sum(ModelShape.of(model.config).tensors) == sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    measure_two_ranks(Path(sys.argv[1]), Path(sys.argv[2]))
