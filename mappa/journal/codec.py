"""What a journal's rows hold, and how it is packed: token ids and log-probs as blobs, the rest as msgpack.

A blob is a letter for its number format and the numbers, little-endian: `H` or `I` for ids below 65,536 or above, `f`
or `d` for log-probs, `f` where every one of them is a 32-bit float anyway, as those of the samplers are.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct, field

from mappa.types import Action, Episode, Evidence, ExecutionResult, Verdict

State = Literal["running", "done", "cut", "lost"]


class Observation(Struct, frozen=True, kw_only=True):
    """What came of an action before it was scored: its code, how that ended, what was measured, what is there."""

    code: str | None = None
    execution: ExecutionResult | None = None
    evidence: Evidence | None = None
    files: dict[str, int] = field(default_factory=dict)
    """Files in the workspace after it, with their sizes in bytes."""


class Entry(Struct, frozen=True, kw_only=True):
    """One action of a recalled episode. `action` has what is known of it, its verdict included."""

    action: Action
    observation: Observation | None


class Record(Struct, frozen=True, kw_only=True):
    """An episode as far as it was journaled. A finished one has its actions in `episode`, entries or not."""

    episode: Episode
    state: State
    entries: dict[int, Entry]
    """By ordinal."""


class Span(Struct, frozen=True):
    """Something that took time, in seconds since 1970.

    >>> Span("generate", "3-1-Boston-0", "modeler", 0, 1764.2, 1765.9)
    """

    kind: str
    """queue, generate, tool, coach, journal; publish and learn belong to no episode."""
    episode: str
    role: str
    turn: int
    began: float
    ended: float


encode = msgspec.msgpack.Encoder().encode
decode_observation = msgspec.msgpack.Decoder(Observation).decode
decode_verdict = msgspec.msgpack.Decoder(Verdict).decode


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as a blob."""
    try:
        return b"H" + _little(array("H", ids)).tobytes()
    except OverflowError:
        return b"I" + _little(array("I", ids)).tobytes()


def pack_logprobs(values: Sequence[float]) -> bytes:
    """Log-probs as a blob that gives back the very same numbers."""
    short = array("f", values)
    if short.tolist() == list(values):
        return b"f" + _little(short).tobytes()
    return b"d" + _little(array("d", values)).tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    return tuple(_unpack(blob))


def unpack_logprobs(blob: bytes) -> tuple[float, ...]:
    return tuple(_unpack(blob))


def _unpack(blob: bytes) -> array:
    values = array(chr(blob[0]))
    values.frombytes(blob[1:])
    return _little(values)


def _little(values: array) -> array:
    if sys.byteorder == "big":
        values.byteswap()
    return values
