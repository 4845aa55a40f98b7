"""Checkpoints that do not depend on the number of ranks: adapters as PEFT folders, full optimizer moments, counters.

    step-000003/
        adapters/ROLE/                  PEFT folders
        moments.safetensors             exp_avg and exp_avg_sq by role and layer, fp32
        rng.safetensors                 the state of torch's generator on rank 0
        state.json                      counters and the settings that must agree
        manifest.json                   sha256 of every other file, written last

A checkpoint is built beside its place, synced, and renamed: it is there whole or not at all. A damaged one is refused
by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import MsgspecError, Struct
from msgspec.json import decode, encode
from msgspec.structs import replace
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mappa.errors import CheckpointError, DiskError
from mappa.learn import ranks
from mappa.learn.adapters import read_adapter, read_alpha

if TYPE_CHECKING:
    from mappa.learn.learner import Learner

_MOMENTS = ("exp_avg", "exp_avg_sq")


class State(Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint says of itself."""

    steps: int
    optimizer_steps: dict[str, float]
    roles: tuple[str, ...]
    rank: int
    targets: tuple[str, ...]
    first_layer: int
    alpha: float | None = None
    """None in those written before it was kept; their adapters say it."""


def save(learner: Learner, folder: Path) -> None:
    """Write `folder` (see `Learner.save`). Every rank takes part, rank 0 writes."""
    moments = dict(_moments(learner))
    fault = None
    if ranks.rank() == 0:
        try:
            _write(learner, folder, moments)
        except (DiskError, OSError, SafetensorError) as error:
            fault = DiskError(f"the checkpoint {folder} cannot be written: {error}; free disk space and run again")
    ranks.raise_together(fault)


def restore(learner: Learner, folder: Path) -> None:
    """Put a learner where the checkpoint was taken. Raises CheckpointError."""
    state = verify(folder)
    config = learner.config
    if state.alpha is None:
        state = replace(state, alpha=read_alpha(folder / "adapters" / state.roles[0]))
    for name in ("roles", "rank", "alpha", "targets", "first_layer"):
        if getattr(state, name) != getattr(config, name):
            raise CheckpointError(
                f"{folder} was taken with learn.{name} = {getattr(state, name)}, this run has {getattr(config, name)}"
            )
    moments = load_file(folder / "moments.safetensors")
    for role, weights in learner.weights.items():
        adapter = read_adapter(folder / "adapters" / role)
        for layer, parameter in weights.parameters.items():
            set_weight(parameter, weights.join(layer, adapter))
            for moment in _MOMENTS:
                whole = {
                    name: (moments[_key(role, name, "A", moment)], moments[_key(role, name, "B", moment)])
                    for name, _ in weights.split(layer, parameter.detach())
                }
                _set_moment(learner, parameter, weights.join(layer, whole), moment)
    for role, tensors in zip(config.roles, learner.stepped(), strict=True):
        for tensor in tensors:
            learner.optimizer.state[tensor]["step"].fill_(state.optimizer_steps[role])
    torch.set_rng_state(load_file(folder / "rng.safetensors")["torch"])
    learner.steps = state.steps


def verify(folder: Path) -> State:
    """The state of a checkpoint whose every file is as it was written, by this version or one that writes the same.

    Raises CheckpointError naming what is not.
    """
    try:
        manifest = decode((folder / "manifest.json").read_bytes(), type=dict[str, str])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {error}") from error
    for name, digest in manifest.items():
        path = folder / name
        if not path.is_file() or _digest(path) != digest:
            raise CheckpointError(f"the checkpoint {folder} is damaged: {name} is missing or changed")
    try:
        return decode((folder / "state.json").read_bytes(), type=State)
    except (OSError, MsgspecError) as error:
        raise CheckpointError(f"{folder} is of another version of mappa, or damaged: state.json: {error}") from error


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint under `folder`, and a line for every newer one that was refused."""
    refused = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return path, refused
    return None, refused


def name(step: int) -> str:
    return f"step-{step:06d}"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted save left behind."""
    for path in sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name))[:-keep]:
        shutil.rmtree(path)
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def _write(learner: Learner, folder: Path, moments: dict[str, torch.Tensor]) -> None:
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for role in learner.config.roles:
        learner.export(role, building / "adapters" / role)
    save_file(moments, building / "moments.safetensors")
    save_file({"torch": torch.get_rng_state()}, building / "rng.safetensors")
    config = learner.config
    steps = {
        role: float(learner.optimizer.state[tensors[0]]["step"])
        for role, tensors in zip(config.roles, learner.stepped(), strict=True)
    }
    state = State(learner.steps, steps, config.roles, config.rank, config.targets, config.first_layer, config.alpha)
    (building / "state.json").write_bytes(encode(state))
    files = sorted(path for path in building.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(building)): _digest(path) for path in files}
    (building / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in [*files, building / "manifest.json", building]:
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    _sync(folder.parent)


def _moments(learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
    for role, weights in learner.weights.items():
        for layer, parameter in weights.parameters.items():
            for moment in _MOMENTS:
                for name, pair in weights.split(layer, _moment(learner, parameter, moment)):
                    for letter, tensor in zip("AB", pair, strict=True):
                        yield _key(role, name, letter, moment), tensor.clone()


def _key(role: str, name: str, letter: str, moment: str) -> str:
    return f"{role}/{name}/{letter}/{moment}"


def _moment(learner: Learner, parameter: torch.Tensor, key: str) -> torch.Tensor:
    """The whole of one parameter's moment, wherever its parts are (collective where it is divided)."""
    if parameter in learner.optimizer.state:
        value: torch.Tensor = learner.optimizer.state[parameter][key]
        return value.clone()
    from deepspeed.utils import safe_get_full_optimizer_state

    found: Any = safe_get_full_optimizer_state(parameter, key)
    assert found is not None, "DeepSpeed lost the optimizer state of an adapter"
    return torch.as_tensor(found).clone().view_as(parameter)


def _set_moment(learner: Learner, parameter: torch.Tensor, value: torch.Tensor, key: str) -> None:
    if parameter in learner.optimizer.state:
        learner.optimizer.state[parameter][key].copy_(value)
        return
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if hasattr(parameter, "ds_id"):
        safe_set_local_optimizer_state(parameter, _piece(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def set_weight(parameter: Any, value: torch.Tensor) -> None:
    """Change a parameter, and the copy that ZeRO updates, where there is one."""
    parameter.data.copy_(value)
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_set_local_fp32_param

        piece = _piece(parameter, value)
        safe_set_local_fp32_param(parameter, piece)
        parameter.ds_tensor.data.copy_(piece)  # what the parameter is put together from
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value)


def _piece(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """What this rank holds of `value` under ZeRO-3. DeepSpeed's own way of setting a whole parameter fails where the
    ranks do not divide it evenly."""
    size: int = parameter.ds_tensor.ds_numel
    padded = value.new_zeros(size * ranks.world_size())
    padded[: value.numel()] = value.flatten()
    return padded[size * ranks.rank() :][:size]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
