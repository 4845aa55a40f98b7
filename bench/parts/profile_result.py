"""What a simulation comes to."""

from __future__ import annotations

from msgspec import Struct

from bench.parts.profile_engine import Gpu
from mappa.journal import Span


class Simulated(Struct, frozen=True, kw_only=True):
    """What a design comes to. All of it is simulated."""

    design: str
    gpus: int
    """That it uses."""
    steps: int
    """Measured ones."""
    step_seconds: float
    episodes_per_gpu_hour: float
    serving: tuple[float, ...]
    """Share of the time each GPU serves; with `learning` at most 1."""
    learning: tuple[float, ...]
    staleness: dict[int, int]
    """Versions behind -> actions that were learned from."""
    waits: dict[str, float]
    """Seconds of episodes per step: queueing for tokens in flight or a fresh version, generating, in tools."""
    rows: float
    """Sequences that a server decodes together, on average over its steps."""
    token_seconds: float
    """A decoding step, the GPU shared with nobody; `alone` is that of one row without context."""
    alone: float
    kv_full: float
    """Share of the time in which a server had no room for the next request's keys and values; the worst server."""
    prefill_per_second: float
    """Tokens of prompts computed, over the seconds of the step, node."""
    decode_per_second: float
    learn_per_second: float
    """Tokens forward and backward, padding included, over the seconds of learning."""
    reused: float
    """Share of prompt tokens found in a server's cache."""
    learn_seconds: float
    """Of a step."""
    publish_seconds: float
    computed: float
    """Tokens of a step that the learner computes, padding included."""
    mfu: float
    """Useful operations (recomputation and padding are none) over the peak of all its GPUs and all of the time."""
    learn_mfu: float
    """The same of the learner, over the time of its steps."""
    cut: int
    """Episodes that met their deadline."""


class History(Struct, frozen=True):
    """For pictures: when everybody was at work."""

    gpus: tuple[Gpu, ...]
    spans: tuple[Span, ...]
    began: float
    ended: float
