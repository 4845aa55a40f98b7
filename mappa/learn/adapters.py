"""Adapters on disk: PEFT folders, which `peft.PeftModel.from_pretrained` and servers load unchanged."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mappa.config import LearnConfig
from mappa.errors import AdapterError, DiskError

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def write_adapter(
    folder: Path, adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]], config: LearnConfig, layers: int
) -> None:
    """Write a PEFT folder, whole or not at all. `layers` is the number of decoder layers of the base.

    Raises DiskError.
    """
    building = folder.with_name(f".{folder.name}.building-{os.getpid()}")
    tensors = {}
    for name, (a, b) in adapter.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a.detach().float().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b.detach().float().contiguous()
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        save_file(tensors, building / _WEIGHTS, metadata={"format": "pt"})
        (building / _CONFIG).write_text(json.dumps(_peft_config(config, layers), indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except (OSError, SafetensorError) as error:  # which is no OSError where the disk is full
        raise DiskError(f"the adapter {folder} cannot be written: {error}; free disk space and run again") from error


def read_adapter(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights of a PEFT folder by module name. Raises AdapterError if it is not one or is damaged."""
    path = folder / _WEIGHTS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"no adapter at {folder}: {_WEIGHTS} is missing") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"the adapter at {folder} is damaged: {error}") from error
    adapter = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            other = f"{_PREFIX}{name}.lora_B.weight"
            if other not in tensors:
                raise AdapterError(f"the adapter at {folder} is damaged: {other} is missing")
            adapter[name] = (a, tensors[other])
    if not adapter:
        raise AdapterError(f"the adapter at {folder} holds no LoRA weights")
    return adapter


def read_alpha(folder: Path) -> float:
    """The alpha of a PEFT folder: its weights act at the scale alpha / rank, whatever rule the folder names.

    Raises AdapterError if the folder does not say it, or not one for all layers.
    """
    path = folder / _CONFIG
    try:
        said = json.loads(path.read_bytes())
        alpha, rank = float(said["lora_alpha"]), int(said["r"])
    except FileNotFoundError:
        raise AdapterError(f"no adapter at {folder}: {_CONFIG}, which says its scale, is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"the adapter at {folder} is damaged: {_CONFIG}: {error!r}") from error
    if said.get("alpha_pattern"):
        raise AdapterError(f"the adapter at {folder} gives layers a scale of their own (alpha_pattern); it has no one")
    return alpha * math.sqrt(rank) if said.get("use_rslora") else alpha  # alpha / sqrt(rank) there


def check_alpha(folder: Path, config: LearnConfig) -> None:
    """Raise AdapterError if the folder's weights would act at another scale here. The ranks are known to be equal."""
    if not math.isclose(alpha := read_alpha(folder), config.alpha):
        raise AdapterError(
            f"the adapter at {folder} has lora_alpha {alpha:g}; learn.alpha is {config.alpha:g}, at which it would act "
            f"{config.alpha / alpha:g} times as strongly: set learn.alpha={alpha:g}"
        )


def _peft_config(config: LearnConfig, layers: int) -> dict[str, object]:
    adapted = list(range(config.first_layer, layers))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(config.targets),
        "layers_to_transform": adapted if config.first_layer else None,
        "inference_mode": True,
    }
