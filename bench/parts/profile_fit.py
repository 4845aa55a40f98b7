"""What a run cost, fitted on its journal: a decoding step takes a + b · rows seconds and a prompt's token b, tools and
coach take what they took, learning so many seconds per token computed. Medians over steps, as machines are shared.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from bench.parts.profile_engine import BLOCK
from mappa.config import Config
from mappa.errors import JournalError
from mappa.journal import Span, read_config, read_episodes, read_spans
from mappa.observe.metrics import StepMetrics, read_metrics
from mappa.sampler.sglang.routing import blocks_of
from mappa.types import Action, Episode


class Past(Struct, frozen=True):
    """A run that is over, or has some steps behind it."""

    config: Config
    episodes: list[Episode]
    """Of training, in the order they began."""
    spans: dict[tuple[str, str, str, int], Span]
    """By kind, episode, role and turn."""
    steps: list[StepMetrics]

    @classmethod
    def read(cls, folder: Path) -> Past:
        """Raises JournalError for a run with fewer than two steps."""
        journal = folder / "journal.sqlite"
        steps = read_metrics(folder / "metrics.jsonl")
        if len(steps) < 2:
            raise JournalError(f"{folder} has {len(steps)} finished steps; two are needed")
        numbers = {step.step for step in steps}
        episodes = [e for e in read_episodes(journal) if e.step in numbers and e.error is None]
        spans = {(s.kind, s.episode, s.role, s.turn): s for s in read_spans(journal)}
        return cls(read_config(journal), episodes, spans, steps)

    def actions(self) -> Iterator[tuple[str, Action]]:
        """With their episodes."""
        return ((episode.id, action) for episode in self.episodes for action in episode.actions)

    def seconds(self, kind: str) -> tuple[float, ...]:
        """Of all its spans of a kind; 0 where there is none."""
        names = ((kind, episode, action.role, action.turn) for episode, action in self.actions())
        found = [self.spans[name] for name in names if name in self.spans]
        return tuple(span.ended - span.began for span in found) or (0.0,)


class Fitted(Struct, frozen=True, kw_only=True):
    """What a run cost; obeys `Cost`."""

    step: float
    """a: seconds of a decoding step, however many rows."""
    row: float
    """b: seconds of each row's token in it, and of a prompt's token."""
    tools: tuple[float, ...]
    """Seconds of its executions."""
    coach: tuple[float, ...]
    """Seconds of its verdicts."""
    learn: float
    """Seconds per token computed."""
    publish: float
    other: float
    """Seconds of a step that belong to none of its phases."""

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        return self.row * sum(tokens - cached for tokens, cached in prompts)

    def decode(self, rows: int, context: float) -> float:
        return self.step + self.row * rows


def fit(past: Past) -> Fitted:
    """Raises JournalError where nothing was generated."""
    step, row = fit_decoding(list(_watched(past)))
    middle = statistics.median
    return Fitted(
        step=step,
        row=row,
        tools=past.seconds("tool"),
        coach=past.seconds("coach"),
        learn=middle(m.seconds.learn / m.tokens_computed for m in past.steps if m.tokens_computed),
        publish=middle(m.seconds.publish for m in past.steps),
        other=middle(m.seconds.other for m in past.steps),
    )


class Watched(Struct, frozen=True):
    """A request as the journal has it."""

    began: float
    ended: float
    new: int
    """Tokens of its prompt that nothing before it had in common with it."""
    tokens: int
    """Written."""


def fit_decoding(requests: Sequence[Watched]) -> tuple[float, float]:
    """(a, b), non-negative, for which every request's tokens come out best: in the time dt with n rows each has
    dt / (a + b n), once the prompts that came in are computed. Relative errors, large ones counted linearly."""
    from scipy.optimize import least_squares

    if not requests:
        raise JournalError("nothing was generated; give the folder of a training run")
    edges = sorted({time for request in requests for time in (request.began, request.ended)})
    lengths, starts, ends = np.diff(edges), np.array(edges[:-1]), np.array(edges[1:])
    names = Watched.__struct_fields__
    began, ended, new, tokens = (np.array([getattr(r, name) for r in requests], dtype=float) for name in names)
    running = (began[:, None] <= starts) & (ended[:, None] >= ends)  # [requests, windows]
    rows = running.sum(0)
    arriving = ((began[:, None] == starts) * new[:, None]).sum(0)

    def errors(logs: np.ndarray) -> np.ndarray:
        a, b = np.exp(logs)
        left = np.maximum(lengths - b * arriving, 0.0)
        written = running @ (left / (a + b * np.maximum(rows, 1)))
        return written / tokens - 1

    per_token = float(np.median((ended - began) / tokens))
    start = np.log([per_token / 2, per_token / (2 * max(float(np.mean(rows)), 1.0))])
    found = least_squares(errors, start, loss="soft_l1", f_scale=0.1, bounds=(start - 12, start + 6))
    a, b = np.exp(found.x)
    return float(a), float(b)


def _watched(past: Past) -> Iterator[Watched]:
    """The requests of all steps, one after the other. What a version's prompts have in common is computed once."""
    known: set[int] = set()
    found = []
    for episode, action in past.actions():
        span = past.spans.get(("generate", episode, action.role, action.turn))
        if span is not None and action.output_ids:
            found.append((span, action))
    for span, action in sorted(found, key=lambda pair: pair[0].began):
        blocks = blocks_of(action.adapter, action.prompt_ids)
        shared = sum(1 for _ in itertools.takewhile(known.__contains__, blocks))
        known.update(blocks)
        new = max(1, len(action.prompt_ids) - BLOCK * shared)
        yield Watched(span.began, span.ended, new, len(action.output_ids))
