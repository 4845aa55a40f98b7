"""A run's timeline: a step's shares of it, and all of it in the format that Chrome and Perfetto show."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from mappa.journal import Span
from mappa.observe.metrics import RolloutMetrics
from mappa.rollout.samples import learned_actions, staleness
from mappa.types import Episode

Interval = tuple[float, float]

_RUN = 1  # process id, in a trace, of what belongs to no episode


def rollout_metrics(
    spans: Sequence[Span], began: float, ended: float, episodes: Sequence[Episode], **counted: float
) -> RolloutMetrics:
    """The step between `began` and `ended` (seconds since 1970); `episodes` are those that were learned from."""
    generate = _union(spans, ("generate",), began, ended)
    tool = _union(spans, ("tool",), began, ended)
    coach = _union(spans, ("coach",), began, ended)
    learn = _union(spans, ("learn",), began, ended)
    others = merge([*tool, *coach, *learn])
    hidden = total(others) - total(without(others, generate))
    return RolloutMetrics(
        busy=total(generate) / (ended - began) if ended > began else 0.0,
        overlap=hidden / total(others) if others else 0.0,
        wait_coach=total(without(coach, merge([*generate, *tool, *learn]))),
        wait_sandbox=total(without(tool, merge([*generate, *learn]))),
        wait_learner=total(without(learn, generate)),
        staleness=dict(
            sorted(Counter(staleness(e, action) for e in episodes for action in learned_actions(e)).items())
        ),
        cut=sum(episode.cut for episode in episodes),
        **counted,  # type: ignore[arg-type]  # lag is a float, the others are counts
    )


def rollout_text(metrics: RolloutMetrics) -> str:
    """A step's rollouts in one line."""
    stale = ", ".join(f"{behind}: {actions}" for behind, actions in metrics.staleness.items())
    parts = [
        f"serving {100 * metrics.busy:.0f} % busy",
        f"{100 * metrics.overlap:.0f} % of sandbox, coach and learner behind it",
        f"waited for coach {metrics.wait_coach:.1f} s, sandbox {metrics.wait_sandbox:.1f} s, "
        f"learner {metrics.wait_learner:.1f} s",
        f"staleness {stale or '-'}",
        f"loop lag {1000 * metrics.lag:.0f} ms",
    ]
    if metrics.cut:
        parts.append(f"{metrics.cut} episodes cut")
    if metrics.recalled:
        parts.append(f"{metrics.recalled} actions from the journal")
    if metrics.replayed:
        parts.append(f"{metrics.replayed} runs repeated, {metrics.differed} ended differently")
    return " | ".join(parts)


def chrome_trace(spans: Sequence[Span]) -> bytes:
    """JSON for chrome://tracing or ui.perfetto.dev: a process per episode, in it a thread per role and kind of work."""
    start = min((span.began for span in spans), default=0.0)
    names: dict[tuple[int, int], tuple[str, str]] = {}
    events: list[dict[str, object]] = []
    for span in sorted(spans, key=lambda span: span.began):
        process = 2 + zlib.crc32(span.episode.encode()) if span.episode else _RUN
        thread = zlib.crc32(f"{span.role}/{span.kind}".encode()) >> 1
        names[process, thread] = (span.episode or "run", f"{span.role} {span.kind}".strip())
        events.append(
            {
                "name": span.kind,
                "cat": span.role or "run",
                "ph": "X",
                "ts": round(1e6 * (span.began - start)),
                "dur": round(1e6 * (span.ended - span.began)),
                "pid": process,
                "tid": thread,
                "args": {"episode": span.episode, "turn": span.turn},
            }
        )
    meta = [
        {"name": f"{what}_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
        for (process, thread), pair in names.items()
        for what, name in zip(("process", "thread"), pair, strict=True)
    ]
    return msgspec.json.encode({"displayTimeUnit": "ms", "traceEvents": [*meta, *events]})


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that do not touch, in order."""
    merged: list[Interval] = []
    for began, ended in sorted(intervals):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ended))
        else:
            merged.append((began, ended))
    return merged


def without(intervals: Sequence[Interval], taken: Sequence[Interval]) -> list[Interval]:
    """What is left of merged `intervals` outside of merged `taken`."""
    left: list[Interval] = []
    place = 0
    for start, ended in intervals:
        began = start
        while place < len(taken) and taken[place][1] <= began:
            place += 1
        at = place
        while at < len(taken) and taken[at][0] < ended:
            if taken[at][0] > began:
                left.append((began, taken[at][0]))
            began = max(began, taken[at][1])
            at += 1
        if began < ended:
            left.append((began, ended))
    return left


def total(intervals: Sequence[Interval]) -> float:
    return sum(ended - began for began, ended in intervals)


def _union(spans: Sequence[Span], kinds: Sequence[str], began: float, ended: float) -> list[Interval]:
    """When any of `kinds` was going on, within the window."""
    return merge(
        (max(span.began, began), min(span.ended, ended))
        for span in spans
        if span.kind in kinds and span.began < ended and span.ended > began
    )
