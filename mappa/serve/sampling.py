"""A sampling request: continuations with their log-probs, and log-probs of the prompt."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Sequence
from functools import partial

import numpy as np
from msgspec.structs import replace

from mappa.config import ServeConfig
from mappa.model.base import Base
from mappa.model.lora import Router
from mappa.model.score import sequence_logprobs
from mappa.sampler.engine import Request
from mappa.serve import proto
from mappa.serve.errors import UserError
from mappa.serve.models import Models, check_tokens
from mappa.serve.wire import Sample
from mappa.serve.worker import Worker
from mappa.types import SamplingParams


class Sampling:
    def __init__(self, base: Base, router: Router, worker: Worker, models: Models, config: ServeConfig) -> None:
        self._base, self._router, self._worker, self._models = base, router, worker, models
        self._max_context = config.max_context

    async def sample(self, asked: Sample, path: str, id: str) -> bytes:
        """The answer's bytes; the weights are those of `path`, or the base's. Raises UserError."""
        prompt = tuple(token for chunk in asked.prompt.chunks for token in chunk.tokens)
        params, ends = self._params(asked, prompt)
        seeds = _seeds(asked.sampling_params.seed, asked.num_samples)

        def make(n: int) -> Request:
            """On the worker's thread, so that the adapter cannot go before it is used."""
            return Request(f"{id}/{n}", prompt, self._models.served(path), replace(params, seed=seeds[n]), ends)

        scored = await self._prompt_logprobs(asked, prompt, path)
        written = await asyncio.gather(*(self._worker.write(partial(make, n)) for n in range(len(seeds))))
        if any(request.finish == "abort" for request in written):
            raise UserError("the request was cancelled")
        return proto.write_samples(
            [(request.ids, request.logprobs, request.finish == "length") for request in written], scored
        )

    async def _prompt_logprobs(self, asked: Sample, prompt: tuple[int, ...], path: str) -> list[float] | None:
        """Of every token of the prompt, or of the last few; NaN where there is none."""
        if not asked.prompt_logprobs:
            return None

        def score() -> list[float]:
            return sequence_logprobs(self._base, self._router, self._models.adapter_of(path), prompt).tolist()

        found = [math.nan, *(await self._worker.do(f"sampler {path}", score))]
        if asked.prompt_logprobs_last_n is not None:
            skipped = len(found) - asked.prompt_logprobs_last_n
            found[:skipped] = [math.nan] * skipped
        return found

    def _params(self, asked: Sample, prompt: Sequence[int]) -> tuple[SamplingParams, frozenset[int] | None]:
        """How to sample, and the tokens that end it. Raises UserError for what this server does not do."""
        given = asked.sampling_params
        for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
            if getattr(asked, name):
                raise UserError(f"{name} is not offered by this server")
        if asked.target_prompt_logprobs is not None or asked.record_stability_info:
            raise UserError("target_prompt_logprobs and record_stability_info are not offered by this server")
        if given.top_k != -1 or given.top_p != 1.0:
            raise UserError(
                "this server samples from the whole distribution, whose log-probs it reports; leave out top_k and top_p"
            )
        if not math.isfinite(given.temperature) or given.temperature < 0 or asked.num_samples < 1:
            raise UserError("temperature must not be negative, and num_samples at least 1")
        last = asked.prompt_logprobs_last_n
        if last is not None and not (asked.prompt_logprobs and 1 <= last < len(prompt)):
            raise UserError(f"prompt_logprobs_last_n must be in 1..{len(prompt) - 1}, with prompt_logprobs")
        check_tokens(prompt, self._base.vocabulary, self._max_context - 1)
        room = self._max_context - len(prompt)
        limit = room if given.max_tokens is None else given.max_tokens
        if not 1 <= limit <= room:
            raise UserError(
                f"max_tokens is {limit}; {len(prompt)} tokens of prompt leave 1..{room} of this server's max_context"
            )
        words, ends = _stops(given.stop)
        return SamplingParams(temperature=given.temperature, max_tokens=limit, stop=words), ends


def _stops(given: str | Sequence[str | int] | None) -> tuple[str | None, frozenset[int] | None]:
    """A pattern of stop strings, and the tokens that end a text, None: the base's own. Tokens that are given take
    their place, so that an empty list leaves none; strings are looked for beside them."""
    stops = [given] if isinstance(given, str) else given
    if stops is None:
        return None, None
    words = [stop for stop in stops if isinstance(stop, str)]
    tokens = frozenset(stop for stop in stops if isinstance(stop, int))
    return "|".join(map(re.escape, words)) or None, None if words and not tokens else tokens


def _seeds(seed: int | None, count: int) -> list[int]:
    """One per sample. The same seed gives the same ones, and each of them depends on its place alone."""
    if seed is None:
        return [secrets.randbits(64) for _ in range(count)]
    if seed < 0:
        raise UserError("seed must not be negative")
    return [int(np.random.SeedSequence((seed, n)).generate_state(1, np.uint64)[0]) for n in range(count)]
