"""What is here, as the API lists it: training runs and the weights they saved."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from mappa.serve.errors import Refused
from mappa.serve.models import describe
from mappa.serve.state import Checkpoint, Kind, ModelRecord, State


def training_run(state: State, id: str, base: str) -> dict[str, Any]:
    """A model with its last checkpoints. Raises Refused for one that is not known."""
    record = state.find(ModelRecord, id)
    if record is None:
        raise Refused(404, f"there is no training run {id!r}")
    last = {saved.kind: _checkpoint(saved) for saved in _saved(state, id)}
    return {
        "training_run_id": id,
        "base_model": base,
        "model_owner": "local",
        "last_request_time": _time(record.used),
        "last_checkpoint": last.get("weights"),
        "last_sampler_checkpoint": last.get("sampler_weights"),
        "user_metadata": {key: str(value) for key, value in record.metadata.items()},
        **describe(record),
    }


def checkpoints(state: State, id: str) -> dict[str, Any]:
    """The saved weights of a model, those of its sampling sessions excepted."""
    return {"checkpoints": [_checkpoint(saved) for saved in _saved(state, id)]}


def _saved(state: State, id: str) -> list[Checkpoint]:
    """Oldest first."""
    found = [saved for saved in state.all(Checkpoint) if saved.model == id and not saved.ephemeral]
    return sorted(found, key=lambda saved: saved.created)


def _checkpoint(saved: Checkpoint) -> dict[str, Any]:
    kinds: dict[Kind, str] = {"weights": "training", "sampler_weights": "sampler"}
    return {
        "checkpoint_id": "/".join(saved.id.split("/")[-2:]),
        "checkpoint_type": kinds[saved.kind],
        "time": _time(saved.created),
        "tinker_path": saved.id,
        "size_bytes": saved.size,
        "user_metadata": saved.metadata,
        "expires_at": None if saved.expires is None else _time(saved.expires),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
