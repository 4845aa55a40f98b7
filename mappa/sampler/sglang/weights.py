"""Adapters as servers take them: a PEFT folder in shared memory, or the tensors within the request.

A folder's path and an adapter's name are made once and never again: a server remembers both, and would load what it
finds there.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors.torch import save_file

from mappa.model.lora import Adapter
from mappa.sampler.sglang.wire import Client

_SHARED = Path("/dev/shm")
_PREFIX = "mappa-adapters-"


class Published(Struct, frozen=True, kw_only=True, eq=False):
    """One version of one role's adapter, ready to be loaded by any server at any time until it is retired."""

    name: str
    """As the run knows it: `modeler@12`."""
    served: str
    """As servers know it: `modeler@12.3fa9c1`, which no other run has."""
    folder: Path | None
    body: bytes | None
    """The request that carries the tensors, where there is no folder."""
    canary_ids: tuple[int, ...]
    canary: tuple[float, ...]
    """What the learner says of `canary_ids` under this adapter."""

    async def load(self, client: Client, timeout: float) -> None:
        if self.body is not None:
            await client.load_tensors(self.body, timeout)
        else:
            await client.load_folder(self.served, str(self.folder), timeout)

    def forget(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Shelf:
    """This run's folders in shared memory. They go with `close`, or when the next run finds their owner dead."""

    def __init__(self, run: str) -> None:
        _sweep()
        self.path = _SHARED / f"{_PREFIX}{run}"
        building = self.path.with_name(f".{self.path.name}")  # nobody sweeps it before it is locked
        building.mkdir()
        self._lock = os.open(building / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the kernel lets go of it however this process ends
        building.rename(self.path)

    def write(self, name: str, adapter: Adapter, scale: float) -> Path:
        """Write a PEFT folder, whole before it has its name."""
        building, folder = self.path / f".{name}", self.path / name
        building.mkdir()
        save_file(_tensors(adapter), building / "adapter_model.safetensors", metadata={"format": "pt"})
        (building / "adapter_config.json").write_text(json.dumps(peft_config(adapter, scale)))
        building.rename(folder)
        return folder

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def tensor_request(name: str, adapter: Adapter, scale: float, tp: int) -> bytes:
    """The body of /load_lora_adapter_from_tensors.

    The tensors are pickled by value: by reference (torch's shared memory) they would reach this machine's servers
    alone, and with torch's default way of sharing they were seen to crash them.
    """
    tensors = _tensors(adapter)
    payload = base64.b64encode(pickle.dumps(tensors)).decode()
    return msgspec.json.encode(
        {
            "lora_name": name,
            "config_dict": peft_config(adapter, scale),
            "serialized_named_tensors": [payload] * tp,
            "expected_checksums": {
                key: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for key, tensor in tensors.items()
            },
        }
    )


def rank_of(adapter: Adapter) -> int:
    return max(a.shape[0] for a, _ in adapter.values())


def peft_config(adapter: Adapter, scale: float) -> dict[str, Any]:
    """PEFT's adapter_config.json, read off the weights."""
    rank = rank_of(adapter)
    layers = {int(found[1]) for name in adapter if (found := re.search(r"\.(\d+)\.", name))}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in adapter}),
        "layers_to_transform": sorted(layers),
    }


def copied(adapter: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Adapter:
    """The weights as they are now: training goes on in place."""
    return {name: (_own(a), _own(b)) for name, (a, b) in adapter.items()}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    """By the names that PEFT gives them."""
    return {
        f"base_model.model.{name}.lora_{letter}.weight": tensor.detach().contiguous()
        for name, pair in adapter.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def _sweep() -> None:
    """Remove the folders of runs that ended without closing: nobody holds their lock."""
    for folder in _SHARED.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:  # being made or removed at this moment
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
