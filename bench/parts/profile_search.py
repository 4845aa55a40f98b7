"""The settings that are simulated beside the config's own, the best of them, and what bounds each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from bench.parts.profile_design import design_of, overlapped
from bench.parts.profile_result import Simulated
from bench.parts.profile_simulation import Job, simulate
from mappa.config import override
from mappa.errors import ConfigError

ODD = 0.15
"""Share of the time from which on waiting counts."""


class Candidate(Struct, frozen=True):
    """Settings of a config, and the ranks that learn."""

    settings: tuple[str, ...]
    ranks: int

    @property
    def command(self) -> str:
        return f"--nproc-per-node={self.ranks} {' '.join(self.settings)}"


class Tried(Struct, frozen=True):
    """A candidate and what it comes to, or why it is refused."""

    candidate: Candidate
    result: Simulated | None
    why: str


def search(job: Job, first: Candidate) -> list[Tried]:
    """Best first, the refused ones last. One thing after the other: `first`, placement and staleness with nothing held
    back, then with the best of them concurrency and the size of micro-batches."""
    tried = [attempt(job, candidate) for candidate in dict.fromkeys((first, *placements(job)))]
    best = _ranked(tried)[0]
    if best.result is not None:
        tried += [attempt(job, candidate) for candidate in refinements(job, best.candidate)]
    return _ranked(tried)


def placements(job: Job) -> Iterator[Candidate]:
    """Colocated on all GPUs, and a quarter or a half of them for serving."""
    gpus = job.node.gpus
    for serving in dict.fromkeys((gpus, gpus // 4, gpus // 2)):
        for stale in (0, 1, 2) if serving == gpus else (1, 2):
            if serving:
                servers = range(gpus - serving, gpus)
                yield Candidate(
                    tuple(overlapped(job.config, servers, stale)), gpus if serving == gpus else gpus - serving
                )


def refinements(job: Job, best: Candidate) -> Iterator[Candidate]:
    """As many tokens in flight as the config has, and larger micro-batches."""
    own, tokens = job.config.rollout.tokens_in_flight, job.config.learn.tokens_per_micro_batch
    yield replace(best, settings=(*best.settings[:-1], f"rollout.tokens_in_flight={own}"))
    for times in (2, 4):
        yield replace(best, settings=(*best.settings, f"learn.tokens_per_micro_batch={times * tokens}"))


def attempt(job: Job, candidate: Candidate) -> Tried:
    """Simulate it, unless the config refuses its settings or memory is too small."""
    try:
        config = override(job.config, list(candidate.settings))
        design = design_of(config, job.node, candidate.ranks)
        result, _ = simulate(replace(job, config=config), design)
    except ConfigError as error:
        return Tried(candidate, None, str(error))
    return Tried(candidate, result, bound(result))


def bound(result: Simulated) -> str:
    """What keeps a step from being shorter."""
    episode = sum(result.waits.get(kind, 0.0) for kind in ("queue", "generate", "tool"))
    share = {kind: result.waits.get(kind, 0.0) / episode for kind in ("queue", "generate", "tool")}
    busiest = max(s + n for s, n in zip(result.serving, result.learning, strict=True))
    if result.kv_full > ODD:
        return f"memory: {100 * result.kv_full:.0f} % of the time a server has no room for the next request's KV"
    if max(result.learning) > 0.5:
        return f"the learner's FLOP/s: it is at work {100 * max(result.learning):.0f} % of the time"
    if share["queue"] > ODD:
        return f"what may be in flight: episodes queue for {100 * share['queue']:.0f} % of their time"
    if result.token_seconds > 1.5 * result.alone and busiest > 1 - ODD:
        times = result.token_seconds / result.alone
        return f"memory bandwidth: with {result.rows:.0f} rows a server takes {times:.1f} times as long per token"
    return (
        f"latency of the longest episodes: {100 * share['generate']:.0f} % generating a token at a time, "
        f"{100 * share['tool']:.0f} % running code, and a server decodes only {result.rows:.0f} rows together"
    )


def _ranked(tried: Sequence[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda one: -(one.result.episodes_per_gpu_hour if one.result is not None else 0.0))
