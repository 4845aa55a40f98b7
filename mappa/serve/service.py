"""The API's methods: what is asked for is checked here, on the event loop, and done by the worker."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable
from typing import Any

import msgspec

from mappa.config import ServeConfig
from mappa.model.base import Base
from mappa.model.lora import Router
from mappa.serve import listing, proto, wire
from mappa.serve.errors import Refused, UserError
from mappa.serve.futures import PROTO, Answer, Futures
from mappa.serve.intake import Intake
from mappa.serve.models import Models, describe
from mappa.serve.sampling import Sampling
from mappa.serve.state import Checkpoint, ModelRecord, SamplerRecord, Session, State
from mappa.serve.worker import Worker

_SWEEP = 5.0  # seconds between looks at what has expired
_MOST_SAMPLES = 1024  # of one request, which is answered as a whole
_UNEMBED = (
    "this server trains the attention and MLP layers that a model asks for; train_unembed has no effect, the output "
    "layer stays as it is in the base"
)

_log = logging.getLogger(__name__)


class Service:
    """One base and everybody's models. `Refused` is raised for what is not taken in; all else ends in a future."""

    def __init__(
        self, config: ServeConfig, state: State, base: Base, router: Router, worker: Worker, models: Models
    ) -> None:
        self.config = config
        self._intake = Intake(state, config.result_timeout)
        self._state = state
        self._base = base
        self._worker = worker
        self._models = models
        self._sampling = Sampling(base, router, worker, models, config)
        _forget_ended(state)
        self._seen = {session.id: time.monotonic() for session in state.all(Session)}
        self._ending: dict[str, str] = {}
        """Sessions whose end is being written down, and why they end."""

    @property
    def name(self) -> str:
        """What clients call the base."""
        return self.config.name or self.config.model

    @property
    def futures(self) -> Futures:
        """What became of requests."""
        return self._intake.futures

    def health(self) -> None:
        """Raises SamplerError where nothing is computed any more."""
        self._worker.health()

    # Sessions

    async def create_session(self, asked: wire.CreateSession) -> dict[str, Any]:
        session = Session(id=f"session-{secrets.token_hex(8)}", created=time.time(), metadata=asked.user_metadata or {})
        await asyncio.to_thread(self._state.put, session)
        self._seen[session.id] = time.monotonic()
        return {"type": "create_session", "session_id": session.id, "info_message": _UNEMBED}

    async def heartbeat(self, asked: wire.Heartbeat) -> dict[str, Any]:
        self._session(asked.session_id)
        return {"type": "session_heartbeat"}

    async def end_session(self, id: str, why: str) -> None:
        """Give back what a session holds. Its saved weights stay."""
        session = self._session(id)
        self._ending[id] = why  # from here on it shows no more signs of life
        try:
            await asyncio.to_thread(self._state.update, Session, session.id, ended=why)
            self._seen.pop(id, None)
        finally:
            del self._ending[id]
        for model in self._state.all(ModelRecord):
            if model.session == id:
                self._intake.end(model.id, f"session {id!r} has ended: {why}")
                await self._worker.do(model.id, lambda id=model.id: self._models.forget(id, ephemerals=True))  # type: ignore[misc]
        for sampler in self._state.all(SamplerRecord):
            if sampler.session == id:
                self._worker.abort(f"{sampler.id}:")
                await asyncio.to_thread(self._state.remove, sampler)

    async def sweep(self) -> None:
        """For ever: end silent sessions, drop results nobody fetched and saved weights that have expired."""
        while True:
            await asyncio.sleep(min(_SWEEP, self.config.session_timeout / 4))
            self.futures.forget()
            silent = time.monotonic() - self.config.session_timeout
            for id in [id for id, seen in self._seen.items() if seen < silent]:
                if id in self._seen and id not in self._ending:  # its client may be ending it, or have ended it
                    await _try(self.end_session(id, f"silent for {self.config.session_timeout:g} seconds"))
            for saved in self._state.all(Checkpoint):
                if saved.expires is not None and saved.expires < time.time():
                    await _try(self._worker.do(saved.model, lambda saved=saved: self._models.delete(saved)))  # type: ignore[misc]

    # Models

    async def create_model(self, asked: wire.CreateModel) -> dict[str, Any]:
        lora = asked.lora_config or wire.LoraConfig(rank=self.config.rank)
        self._check_base(asked.base_model)
        if not 1 <= lora.rank <= self.config.rank:
            raise Refused(400, f"rank {lora.rank} is not in 1..{self.config.rank}, this server's limit")
        if not lora.train_attn and not lora.train_mlp:
            raise Refused(400, "nothing to train: train_attn and train_mlp are both false, and the output layer is not")
        record = self._new_record(asked.session_id, asked.model_seq_id, lora, asked.user_metadata)

        async def create() -> dict[str, Any]:
            await self._worker.do(record.id, lambda: self._models.create(record))
            return {"type": "create_model", "model_id": record.id}

        return self._intake.begin(f"{record.id}:create", create)

    async def load_weights(self, asked: wire.LoadWeights) -> dict[str, Any]:
        """Into a model there is, in its turn, or into a new one."""
        self._check_base(asked.base_model or self.name)
        if asked.model_id is not None and asked.seq_id is not None:
            record = self._open_model(asked.model_id)
        elif asked.session_id is not None and asked.model_seq_id is not None:
            saved = self._checkpoint(asked.path)
            lora = wire.LoraConfig(rank=saved.rank, train_attn=saved.attention, train_mlp=saved.mlp)
            record = self._new_record(asked.session_id, asked.model_seq_id, lora, asked.user_metadata)
        else:
            raise Refused(400, "load_weights needs model_id and seq_id, or session_id and model_seq_id")
        record = msgspec.structs.replace(record, base=asked.path, optimizer=asked.optimizer)

        async def load() -> dict[str, Any]:
            await self._worker.do(record.id, lambda: self._models.load(record, asked.path, optimizer=asked.optimizer))
            return {"type": "load_weights", "path": asked.path, "model_id": record.id}

        if asked.seq_id is not None:
            return await self._intake.in_turn(record, asked.seq_id, load)
        return self._intake.begin(f"{record.id}:create", load)

    async def get_info(self, asked: wire.GetInfo) -> dict[str, Any]:
        record = self._model(asked.model_id)
        return {
            "type": "get_info",
            "model_id": record.id,
            "model_name": self.name,
            "model_data": {
                "model_name": self.name,
                "tokenizer_id": self._base.path,
                "arch": type(self._base.model).__name__,
            },
            **describe(record),
        }

    async def forward_backward(self, body: bytes) -> dict[str, Any]:
        message = proto.read_forward_backward(body)

        async def run() -> Answer:
            result = await self._worker.train(message.model_id, lambda: self._models.train(message))
            if result.fault and not message.forward_only:
                raise UserError(result.fault)
            metrics = {"loss:sum": result.loss, "models_in_step:max": float(result.company)}
            return Answer(proto.write_forward_backward(result.logprobs, metrics), PROTO)

        return await self._intake.in_turn(self._open_model(message.model_id), message.seq_id, run)

    async def optim_step(self, asked: wire.OptimStep) -> dict[str, Any]:
        id = asked.model_id

        async def step() -> dict[str, Any]:
            return {"metrics": await self._worker.do(id, lambda: self._models.optim_step(id, asked.adam_params))}

        return await self._intake.in_turn(self._open_model(id), asked.seq_id, step)

    async def save_weights(self, asked: wire.SaveWeights) -> dict[str, Any]:
        async def save() -> dict[str, Any]:
            path = await self._worker.do(asked.model_id, lambda: self._models.save(asked))
            return {"type": "save_weights", "path": path}

        return await self._intake.in_turn(self._open_model(asked.model_id), asked.seq_id, save)

    async def save_for_sampler(self, asked: wire.SaveForSampler) -> dict[str, Any]:
        """Under a name, or for a sampling session of its own."""
        if (asked.path is None) == (asked.sampling_session_seq_id is None):
            raise Refused(400, "give path, or sampling_session_seq_id for a sampling session of its own")
        record = self._open_model(asked.model_id)

        async def save() -> dict[str, Any]:
            path = await self._worker.do(record.id, lambda: self._models.save_for_sampler(asked))
            if asked.path is not None:
                return {"type": "save_weights_for_sampler", "path": path}
            id = f"{record.session}:sample:{asked.sampling_session_seq_id}"
            sampler = SamplerRecord(id=id, session=record.session, path=path)
            if asked.kind == "inflight":
                sampler = SamplerRecord(id=id, session=record.session, inflight=record.id)
                await asyncio.to_thread(self._state.update, ModelRecord, record.id, inflight=path)
            await asyncio.to_thread(self._state.put, sampler)
            return {"type": "save_weights_for_sampler", "sampling_session_id": id}

        return await self._intake.in_turn(record, asked.seq_id, save)

    # Sampling

    async def create_sampling_session(self, asked: wire.CreateSamplingSession) -> dict[str, Any]:
        self._session(asked.session_id)
        self._check_base(asked.base_model or self.name)
        path = self._checkpoint(asked.model_path).id if asked.model_path else ""
        id = f"{asked.session_id}:sample:{asked.sampling_session_seq_id}"
        await asyncio.to_thread(self._state.put, SamplerRecord(id=id, session=asked.session_id, path=path))
        return {"type": "create_sampling_session", "sampling_session_id": id}

    async def join_sampling_session(self, asked: wire.JoinSamplingSession) -> dict[str, Any]:
        sampler = self._sampler(asked.sampling_session_id)
        await asyncio.to_thread(self._state.update, SamplerRecord, sampler.id, clients=sampler.clients + 1)
        return {"type": "join_sampling_session", "client_counter": sampler.clients}

    async def get_sampler(self, id: str) -> dict[str, Any]:
        sampler = self._sampler(id)
        return {"sampler_id": sampler.id, "base_model": self.name, "model_path": sampler.path or None}

    async def sample(self, asked: wire.Sample) -> dict[str, Any]:
        sampler = self._sampler(asked.sampling_session_id)
        path = self._model(sampler.inflight).inflight if sampler.inflight else sampler.path
        id = f"{sampler.id}:{asked.seq_id}"

        async def run() -> Answer:
            return Answer(await self._sampling.sample(asked, path, id), PROTO)

        if asked.num_samples > _MOST_SAMPLES:
            raise Refused(400, f"num_samples is {asked.num_samples}; ask for at most {_MOST_SAMPLES} at once")
        sequences = [f"{id}/{n}" for n in range(asked.num_samples)]
        return {**self._intake.begin(id, run), "sample_sequence_ids": sequences}

    async def cancel(self, asked: wire.CancelFuture) -> None:
        """Only what is being written can be stopped; all else runs to its end."""
        self._worker.abort(f"{asked.request_id}/")

    # What is here

    async def capabilities(self) -> dict[str, Any]:
        model = {"model_name": self.name, "max_context_length": self.config.max_context}
        return {"supported_models": [{**model, "trainable": True, "sampleable": True}]}

    async def training_run(self, id: str) -> dict[str, Any]:
        return listing.training_run(self._state, id, self.name)

    async def checkpoints(self, id: str) -> dict[str, Any]:
        return listing.checkpoints(self._state, self._model(id).id)

    async def delete_checkpoint(self, id: str, checkpoint: str) -> None:
        saved = self._checkpoint(f"tinker://{id}/{checkpoint}")
        await self._worker.do(id, lambda: self._models.delete(saved))

    async def weights_info(self, asked: wire.WeightsInfo) -> dict[str, Any]:
        return {"base_model": self.name, **describe(self._checkpoint(asked.tinker_path))}

    # What it is done with

    def _new_record(
        self, session: str, seq: int, lora: wire.LoraConfig, metadata: dict[str, Any] | None
    ) -> ModelRecord:
        self._session(session)
        now = time.time()
        return ModelRecord(
            id=f"{session}:train:{seq}",
            session=session,
            rank=lora.rank,
            seed=lora.seed if lora.seed is not None else secrets.randbits(32),
            attention=lora.train_attn,
            mlp=lora.train_mlp,
            created=now,
            used=now,
            metadata=metadata or {},
        )

    def _session(self, id: str) -> Session:
        """The session, which shows a sign of life by being asked for."""
        session = self._state.find(Session, id)
        if session is None:
            raise Refused(404, f"there is no session {id!r}")
        if ended := session.ended or self._ending.get(id):
            raise Refused(410, f"session {id!r} has ended: {ended}")
        self._seen[id] = time.monotonic()
        return session

    def _open_model(self, id: str) -> ModelRecord:
        """A model whose session has not ended."""
        record = self._model(id)
        self._session(record.session)
        return record

    def _model(self, id: str) -> ModelRecord:
        record = self._state.find(ModelRecord, id)
        if record is None:
            raise Refused(404, f"there is no model {id!r}")
        return record

    def _sampler(self, id: str) -> SamplerRecord:
        sampler = self._state.find(SamplerRecord, id)
        if sampler is None:
            raise Refused(404, f"there is no sampling session {id!r}")
        self._session(sampler.session)
        return sampler

    def _checkpoint(self, path: str) -> Checkpoint:
        try:
            return self._state.checkpoint(path)
        except UserError as error:
            raise Refused(404, str(error)) from None

    def _check_base(self, name: str) -> None:
        if name != self.name:
            raise Refused(400, f"this server has no base model {name!r}; it has {self.name!r}")


async def _try(work: Awaitable[None]) -> None:
    """One thing to be swept: should it fail, the others are swept all the same."""
    try:
        await work
    except Exception:  # noqa: BLE001 - whatever it is, it is no reason to sweep no more
        _log.exception("the server could not clear away what has expired; it will try again")


def _forget_ended(state: State) -> None:
    """Nobody can use sessions that have ended, or their models. What they saved stays, and says whose it is."""
    ended = {session.id for session in state.all(Session) if session.ended}
    lasting = {saved.model for saved in state.all(Checkpoint)}
    owned: list[ModelRecord | SamplerRecord] = [*state.all(ModelRecord), *state.all(SamplerRecord)]
    for record in owned:
        if record.session in ended and record.id not in lasting:
            state.remove(record)
    for session in state.all(Session):
        if session.ended:
            state.remove(session)
