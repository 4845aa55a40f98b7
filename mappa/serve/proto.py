"""The messages that travel as protocol buffers: training data in, log-probs and samples out.

The tables below say what is read and written, by field number. Fields that are sent and not listed are skipped, as the
format has it. Numbers and names of the format are those of the client's public schema; maps are lists of entries and
enums are integers, which is the same on the wire.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from msgspec import Struct

from mappa.serve.errors import Refused, UserError

_Field = tuple[str, int, str]  # name, number, type; a type in brackets repeats
_MESSAGES: dict[str, tuple[_Field, ...]] = {
    "ForwardBackwardRequest": (
        ("model_id", 1, "string"),
        ("seq_id", 2, "int32"),
        ("data", 3, "[Datum]"),
        ("loss_fn", 4, "string"),
        ("forward_only", 6, "bool"),
        ("settings", 7, "[Setting]"),
    ),
    "Setting": (("key", 1, "string"), ("value", 2, "SettingValue")),
    "SettingValue": (("number", 1, "double"), ("text", 2, "string")),
    "Datum": (("model_input", 1, "[Chunk]"), ("inputs", 2, "[Input]")),
    "Chunk": (("text", 1, "TextChunk"),),
    "TextChunk": (("tokens", 1, "bytes"),),
    "Input": (("key", 1, "string"), ("value", 2, "Tensor")),
    "Tensor": (("dense", 1, "bytes"), ("sparse", 2, "SparseRows"), ("dtype", 3, "int32"), ("shape", 4, "[int64]")),
    "SparseRows": (("values", 1, "bytes"), ("rows", 2, "bytes"), ("columns", 3, "bytes")),
    "ForwardBackwardOutput": (("kind", 1, "string"), ("outputs", 2, "[Record]"), ("metrics", 3, "[Metric]")),
    "Metric": (("key", 1, "string"), ("value", 2, "double")),
    "Record": (("tag", 1, "string"), ("fields", 2, "[RecordField]"), ("data", 3, "int64")),
    "RecordField": (("key", 1, "string"), ("value", 2, "Batched")),
    "Batched": (("data", 1, "bytes"), ("offsets", 2, "bytes"), ("dtype", 3, "int32"), ("trailing", 4, "[int64]")),
    "SampleResponse": (("sequences", 1, "[Sequence]"), ("prompt_logprobs", 2, "bytes")),
    "Sequence": (("stop_reason", 1, "int32"), ("tokens", 2, "bytes"), ("logprobs", 3, "bytes")),
}
_FLOAT32, _INT64 = 1, 2
_DTYPES: dict[int, np.dtype[Any]] = {_FLOAT32: np.dtype("<f4"), _INT64: np.dtype("<i8")}
_STOP, _LENGTH = 0, 1
_RECORD = "ArrayRecord"


class RawDatum(Struct, frozen=True, eq=False):
    """A datum as it was sent, whatever is in it."""

    tokens: tuple[int, ...]
    inputs: dict[str, torch.Tensor]


class ForwardBackward(Struct, frozen=True, eq=False):
    """A forward_backward request, or a forward."""

    model_id: str
    seq_id: int
    loss: str
    settings: dict[str, float | str]
    forward_only: bool
    messages: tuple[Any, ...]
    """Its data, still to be read: what is wrong with them is the request's own failure."""

    def data(self) -> list[RawDatum]:
        """Raises UserError for a datum that cannot be read."""
        return [_datum(message, index) for index, message in enumerate(self.messages)]


def read_forward_backward(body: bytes) -> ForwardBackward:
    """Raises Refused for what is not one."""
    message = _new("ForwardBackwardRequest")
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Refused(400, f"the body is no ForwardBackwardRequest: {error}") from None
    return ForwardBackward(
        model_id=message.model_id,
        seq_id=message.seq_id,
        loss=message.loss_fn,
        settings={entry.key: entry.value.text or entry.value.number for entry in message.settings},
        forward_only=message.forward_only,
        messages=tuple(message.data),
    )


def write_forward_backward(logprobs: Sequence[torch.Tensor], metrics: Mapping[str, float]) -> bytes:
    """The answer: log-probs [L] or [L, K] of every datum, and metrics."""
    message = _new("ForwardBackwardOutput", kind=_RECORD)
    for trailing, run in itertools.groupby(logprobs, key=lambda tensor: tuple(tensor.shape[1:])):
        parts = [tensor.contiguous().numpy().astype("<f4").tobytes() for tensor in run]
        record = message.outputs.add(tag=_RECORD, data=len(parts))
        offsets = np.cumsum([0, *map(len, parts)], dtype="<i8")
        batched = _new("Batched", data=b"".join(parts), offsets=offsets.tobytes(), dtype=_FLOAT32, trailing=trailing)
        record.fields.add(key="logprobs").value.CopyFrom(batched)
    for key, value in metrics.items():
        message.metrics.add(key=key, value=value)
    return bytes(message.SerializeToString())


def write_samples(
    sequences: Sequence[tuple[Sequence[int], Sequence[float], bool]], prompt_logprobs: Sequence[float] | None
) -> bytes:
    """The answer to a sampling request: (tokens, log-probs, whether it was cut off) of each sequence."""
    message = _new("SampleResponse")
    for tokens, logprobs, cut in sequences:
        message.sequences.add(
            stop_reason=_LENGTH if cut else _STOP,
            tokens=np.asarray(tokens, "<i4").tobytes(),
            logprobs=np.asarray(logprobs, "<f4").tobytes(),
        )
    if prompt_logprobs is not None:
        message.prompt_logprobs = np.asarray(prompt_logprobs, "<f4").tobytes()
    return bytes(message.SerializeToString())


def _datum(message: Any, index: int) -> RawDatum:
    tokens: list[int] = []
    for chunk in message.model_input:
        if not chunk.HasField("text"):
            raise UserError(f"datum {index}: its input is not text; this server trains on tokens alone")
        tokens += np.frombuffer(chunk.text.tokens, "<i4").tolist()
    try:
        inputs = {entry.key: _tensor(entry.value) for entry in message.inputs}
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"datum {index}: a loss_fn_input cannot be read: {error}") from None
    return RawDatum(tuple(tokens), inputs)


def _tensor(message: Any) -> torch.Tensor:
    dtype, shape = _DTYPES[message.dtype], list(message.shape)
    if not message.HasField("sparse"):
        values = torch.from_numpy(np.frombuffer(message.dense, dtype).copy())
        return values.view(shape or [-1])
    rows, columns = (
        torch.from_numpy(np.frombuffer(b, "<i8").copy()) for b in (message.sparse.rows, message.sparse.columns)
    )
    values = torch.from_numpy(np.frombuffer(message.sparse.values, dtype).copy())
    dense = torch.zeros(shape, dtype=values.dtype)
    dense[torch.arange(len(rows) - 1).repeat_interleave(rows.diff()), columns] = values
    return dense


def _classes() -> dict[str, Any]:
    """A class for each message of the table, in a pool of its own."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mappa/serve.proto", package="mappa.serve", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, text in fields:
            kind = text.strip("[]")
            entry = message.field.add(name=field, number=number)
            entry.label = kinds.LABEL_REPEATED if text.startswith("[") else kinds.LABEL_OPTIONAL
            if kind in _MESSAGES:
                entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".mappa.serve.{kind}"
            else:
                entry.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"mappa.serve.{name}")) for name in _MESSAGES
    }


_CLASSES = _classes()


def _new(name: str, **fields: Any) -> Any:
    return _CLASSES[name](**fields)
