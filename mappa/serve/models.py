"""What the worker's thread owns: models in memory, and saved weights that the sampler can write with."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mappa.config import LearnConfig, ServeConfig
from mappa.model.base import Base
from mappa.model.lora import Adapter, RoleLinear, check_adapter, new_adapter
from mappa.sampler.engine import Engine
from mappa.serve import checkpoint, losses
from mappa.serve.errors import UserError
from mappa.serve.model import Model, ModelWeights
from mappa.serve.proto import ForwardBackward, RawDatum
from mappa.serve.state import Checkpoint, ModelRecord, State, weights_path
from mappa.serve.step import Datum, TrainRequest
from mappa.serve.wire import AdamParams, SaveForSampler, SaveWeights

ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_BASE = "base@0"
_LONGEST_TTL = 100 * 366 * 24 * 3600  # seconds; a calendar ends somewhere


class Models:
    """Models by id. One that is not in memory is made from what it was saved as, if that is all there was of it."""

    def __init__(
        self,
        state: State,
        base: Base,
        layers: Mapping[str, RoleLinear],
        engine: Engine,
        config: ServeConfig,
        learn: LearnConfig,
    ) -> None:
        self._state, self._base, self._layers, self._engine = state, base, layers, engine
        self._config, self._learn = config, learn
        self._models: dict[str, Model] = {}
        self._served: OrderedDict[str, str] = OrderedDict()  # path of saved weights -> adapter, the oldest use first
        self._leaving: set[str] = set()  # adapters that go when nothing is written with them any more
        self._count = itertools.count(1)
        engine.add_adapter(_BASE, {name: _nothing(layer) for name, layer in layers.items()})

    def create(self, record: ModelRecord) -> None:
        """A new model, written down; nothing where there is one already. Raises UserError where there is no room."""
        if self._state.find(ModelRecord, record.id) is None:
            self._make_room()
            self._models[record.id] = self._fresh(record)
            self._state.put(record)

    def load(self, record: ModelRecord, path: str, *, optimizer: bool) -> None:
        """Saved weights in place of a model's own, or for a new one; its rank becomes theirs. Raises UserError."""
        saved, known = self._state.checkpoint(path), self._state.find(ModelRecord, record.id)
        if record.id not in self._models:
            self._make_room()
        self._models[record.id] = self._loaded(record, path, optimizer=optimizer)
        if known is None:
            self._state.put(record)
        changes = {"rank": saved.rank, "attention": saved.attention, "mlp": saved.mlp}
        self._state.update(ModelRecord, record.id, base=path, optimizer=optimizer, unsaved=False, **changes)

    def train(self, message: ForwardBackward) -> TrainRequest:
        """What a forward or forward_backward asks to be computed. Raises UserError naming the datum that is wrong."""
        model = self._get(message.model_id)
        loss = losses.choose(message.loss)
        data = []
        for index, raw in enumerate(message.data()):
            try:
                data.append(self._datum(raw, message.loss, message.settings))
            except UserError as error:
                raise UserError(f"datum {index}: {error}") from None
        if not data:
            raise UserError("there are no data")
        if not message.forward_only:
            self._changed(model)
        return TrainRequest(model, tuple(data), loss, not message.forward_only)

    def optim_step(self, id: str, params: AdamParams) -> dict[str, float]:
        model = self._get(id)
        self._changed(model)
        return model.optim_step(params)

    def save(self, asked: SaveWeights) -> str:
        """A training checkpoint; returns its path."""
        path = weights_path(asked.model_id, "weights", asked.path)
        _check_ttl(asked.ttl_seconds)
        if not asked.overwrite and self._state.find(Checkpoint, path) is not None:
            raise UserError(f"{path} is there already; pass overwrite to replace it")
        model, record = self._get(asked.model_id), self._record(asked.model_id)
        for other in self._state.all(ModelRecord):
            if other.base == path and not other.unsaved:  # what is overwritten is nobody's way back any more
                self._state.update(ModelRecord, other.id, unsaved=True)
        self._write(path, record, asked, optimizer=True)
        if not model.has_gradient:
            self._state.update(ModelRecord, record.id, base=path, optimizer=True, unsaved=False)
        return path

    def save_for_sampler(self, asked: SaveForSampler) -> str:
        """Weights to sample with, ready to be used; returns their path."""
        record = self._record(asked.model_id)
        model = self._get(asked.model_id)
        _check_ttl(asked.ttl_seconds)
        if asked.path is not None:
            path = weights_path(record.id, "sampler_weights", asked.path)
            self._forget_served(path)
        else:
            path = f"tinker://{record.id}/sampler_weights/.ephemeral-{asked.seq_id}"
        self._write(path, record, asked, optimizer=False)
        self._serve(path, model.weights.served())
        if asked.path is None:
            self._drop_old_ephemerals(record.id)
        return path

    def served(self, path: str) -> str:
        """The adapter's name that samples with saved weights, read again where need be; with the base for no path."""
        if not path:
            return _BASE
        if path not in self._served:
            saved = self._state.checkpoint(path)
            adapter = self._read(path)
            self._serve(path, self._weights(adapter, saved.rank).served())
        self._served.move_to_end(path)
        return self._served[path]

    def adapter_of(self, path: str) -> Adapter | None:
        """The weights behind a path, as the sampler computes them; None for the base."""
        return self._engine.adapters[self.served(path)] if path else None

    def forget(self, id: str, *, ephemerals: bool = False) -> None:
        """Drop a model from memory, and with it what was saved for its samplers alone."""
        self._models.pop(id, None)
        if ephemerals:
            for saved in self._ephemerals(id):
                self.delete(saved)

    def delete(self, saved: Checkpoint) -> None:
        """Delete saved weights from the disk and from the records."""
        self._forget_served(saved.id)
        self._state.remove(saved)
        shutil.rmtree(self._state.place(saved.id), ignore_errors=True)

    def _get(self, id: str) -> Model:
        if id in self._models:
            self._models[id] = self._models.pop(id)  # the last used is the last
            return self._models[id]
        record = self._record(id)
        if record.unsaved:
            last = f"its last checkpoint is {record.base}" if record.base else "it was never saved"
            raise UserError(
                f"model {id!r} was lost with what it had learned since it was last saved ({last}): the server was "
                "started again. Create a training client from a checkpoint"
            )
        self._make_room()
        loaded = self._loaded(record, record.base, optimizer=record.optimizer) if record.base else self._fresh(record)
        self._models[id] = loaded
        return loaded

    def _record(self, id: str) -> ModelRecord:
        record = self._state.find(ModelRecord, id)
        if record is None:
            raise UserError(f"there is no model {id!r}")
        return record

    def _changed(self, model: Model) -> None:
        """Write down, before it happens, that the model is no longer what it was saved as."""
        if not self._record(model.id).unsaved:
            self._state.update(ModelRecord, model.id, unsaved=True)

    def _make_room(self) -> None:
        if len(self._models) < self._config.max_models:
            return
        for id in self._models:
            if not self._record(id).unsaved:
                self.forget(id)
                return
        raise UserError(
            f"this server holds {self._config.max_models} models, all with unsaved training; end a session or raise "
            "max_models"
        )

    def _fresh(self, record: ModelRecord) -> Model:
        generator = torch.Generator().manual_seed(record.seed)
        chosen = {
            name: layer
            for name, layer in self._layers.items()
            if (record.attention if name.rpartition(".")[2] in ATTENTION else record.mlp)
        }
        return Model(record.id, self._weights(new_adapter(chosen, record.rank, generator), record.rank))

    def _loaded(self, record: ModelRecord, path: str, *, optimizer: bool) -> Model:
        saved = self._state.checkpoint(path)
        model = Model(record.id, self._weights(self._read(path), saved.rank))
        if optimizer:
            checkpoint.restore_optimizer(model, self._state.place(path))
        return model

    def _read(self, path: str) -> Adapter:
        """An adapter in the order of the base's layers, which is that of the optimiser's state."""
        adapter = checkpoint.read_weights(self._state.place(path))
        known = {name: layer for name, layer in self._layers.items() if name in adapter}
        check_adapter(known, adapter, path)
        return {name: adapter[name] for name in known}

    def _weights(self, adapter: Adapter, rank: int) -> ModelWeights:
        if rank > self._config.rank:
            raise UserError(f"rank {rank} is above this server's limit of {self._config.rank}")
        return ModelWeights(adapter, self._layers, rank=rank, limit=self._config.rank, alpha=self._config.alpha)

    def _datum(self, raw: RawDatum, loss: str, settings: Mapping[str, float | str]) -> Datum:
        inputs = dict(raw.inputs)
        targets = inputs.pop(losses.TARGETS, None)
        if targets is None or targets.dtype != torch.int64 or targets.dim() not in (1, 2):
            raise UserError(f"{losses.TARGETS} must be integers, [tokens] or [tokens, K]")
        check_tokens(raw.tokens, self._base.vocabulary, self._config.max_context)
        if len(targets) != len(raw.tokens) or not targets.numel():
            raise UserError(f"{losses.TARGETS} has shape {list(targets.shape)} for {len(raw.tokens)} input tokens")
        if int(targets.min()) < 0 or int(targets.max()) >= self._base.vocabulary:
            raise UserError(f"{losses.TARGETS} are outside 0..{self._base.vocabulary - 1}")
        return Datum(raw.tokens, targets, losses.complete(loss, settings, inputs, targets.shape))

    def _write(self, path: str, record: ModelRecord, asked: SaveWeights | SaveForSampler, *, optimizer: bool) -> None:
        layers, now = len(self._base.decoder.layers), time.time()
        folder = self._state.place(path)
        size = checkpoint.save(self._models[record.id], folder, self._learn, layers, optimizer=optimizer)
        self._state.put(
            Checkpoint(
                id=path,
                model=record.id,
                kind="weights" if optimizer else "sampler_weights",
                rank=record.rank,
                attention=record.attention,
                mlp=record.mlp,
                created=now,
                expires=None if asked.ttl_seconds is None else now + asked.ttl_seconds,
                size=size,
                metadata=asked.user_metadata or {},
                ephemeral=asked.path is None,
            )
        )

    def _serve(self, path: str, adapter: Adapter) -> None:
        name = f"{path}@{next(self._count)}"
        self._engine.add_adapter(name, adapter)
        self._served[path] = name
        while len(self._served) > self._config.max_samplers:
            self._leaving.add(self._served.popitem(last=False)[1])
        self._drop_unused()

    def _forget_served(self, path: str) -> None:
        if path in self._served:
            self._leaving.add(self._served.pop(path))
            self._drop_unused()

    def _drop_unused(self) -> None:
        unused = self._leaving - {row.adapter for row in (*self._engine.rows, *self._engine.waiting)}
        for name in unused:
            self._engine.drop_adapter(name)
        self._leaving -= unused

    def _ephemerals(self, id: str) -> list[Checkpoint]:
        found = [saved for saved in self._state.all(Checkpoint) if saved.ephemeral and saved.model == id]
        return sorted(found, key=lambda saved: saved.created)

    def _drop_old_ephemerals(self, id: str) -> None:
        for saved in self._ephemerals(id)[: -self._config.max_samplers]:
            self.delete(saved)


def check_tokens(tokens: Sequence[int], vocabulary: int, longest: int) -> None:
    """Raises UserError."""
    if not tokens or min(tokens) < 0 or max(tokens) >= vocabulary:
        raise UserError(f"the tokens are empty or outside 0..{vocabulary - 1}")
    if len(tokens) > longest:
        raise UserError(f"{len(tokens)} tokens are more than this server's max_context of {longest}")


def _check_ttl(seconds: int | None) -> None:
    if seconds is not None and not 1 <= seconds <= _LONGEST_TTL:
        raise UserError(f"ttl_seconds is {seconds}; give 1..{_LONGEST_TTL}, or none for weights that do not expire")


def describe(record: ModelRecord | Checkpoint) -> dict[str, Any]:
    """What of its adapter the API tells."""
    return {
        "is_lora": True,
        "lora_rank": record.rank,
        "train_attn": record.attention,
        "train_mlp": record.mlp,
        "train_unembed": False,
    }


def _nothing(layer: RoleLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """An adapter of a layer that adds exactly 0."""
    return torch.zeros(1, layer.base.in_features), torch.zeros(layer.base.out_features, 1)
