"""A model on disk, whole or not at all.

NAME/
    adapter/                 a PEFT folder, which peft and inference servers load unchanged
    optimizer.safetensors    Adam's moments by decoder layer, and its step; of a training checkpoint alone
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from mappa.config import LearnConfig
from mappa.learn.adapters import read_adapter, write_adapter
from mappa.model.lora import Adapter
from mappa.serve.errors import UserError
from mappa.serve.model import Model

_MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE = "optimizer.safetensors"


def save(model: Model, folder: Path, config: LearnConfig, layers: int, *, optimizer: bool) -> int:
    """Write `folder` in place of what was there. Returns its size in bytes. `layers`: decoder layers of the base."""
    adapter = model.weights.adapter()
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in adapter))
    write_adapter(building / "adapter", adapter, replace(config, rank=model.weights.rank, targets=targets), layers)
    if optimizer:
        save_file(_optimizer_state(model), building / _FILE)
    files = [path for path in building.rglob("*") if path.is_file()]
    for path in [*files, building]:
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    _sync(folder.parent)
    return sum((folder / path.relative_to(building)).stat().st_size for path in files)


def read_weights(folder: Path) -> Adapter:
    """Raises AdapterError."""
    return read_adapter(folder / "adapter")


def restore_optimizer(model: Model, folder: Path) -> None:
    """Take Adam's state over. Raises UserError where there is none: sampler weights have no optimiser."""
    if not (folder / _FILE).is_file():
        raise UserError(f"{folder.name} holds no optimiser state; load its weights alone")
    tensors = load_file(folder / _FILE)
    model.steps = int(tensors["step"])
    for layer, parameter in model.weights.parameters.items():
        if f"{layer}/{_MOMENTS[0]}" in tensors:
            model.optimizer.state[parameter] = {
                "step": torch.tensor(float(tensors["step"])),
                **{moment: tensors[f"{layer}/{moment}"] for moment in _MOMENTS},
            }


def _optimizer_state(model: Model) -> dict[str, torch.Tensor]:
    found = {"step": torch.tensor(model.steps)}
    for layer, parameter in model.weights.parameters.items():
        for moment in _MOMENTS:
            if parameter in model.optimizer.state:
                found[f"{layer}/{moment}"] = model.optimizer.state[parameter][moment]
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
