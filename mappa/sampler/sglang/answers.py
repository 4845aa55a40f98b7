"""Requests before they are sent, and answers as generations: the same rules as the local sampler's."""

from __future__ import annotations

import math

from mappa.errors import SamplerError
from mappa.model.base import Base
from mappa.sampler.sglang.wire import Reply
from mappa.sampler.stopping import Pieces, remembering, stops_at
from mappa.types import FinishReason, Generation, SamplingParams


class Answers:
    """Knows the base's vocabulary, its end tokens and the text of every token."""

    def __init__(self, base: Base, max_context: int) -> None:
        self.end_ids = tuple(sorted(base.end_ids))
        self._base = base
        self._max_context = max_context
        self._decode = remembering(base.text)

    def check(self, prompt: tuple[int, ...], params: SamplingParams, request_id: str) -> None:
        """Refuse what no server can answer: a token outside of the vocabulary does not fail there, it kills it."""
        if not prompt or min(prompt) < 0 or max(prompt) >= self._base.vocabulary:
            raise SamplerError(
                f"request {request_id}: the prompt is empty or has ids outside 0..{self._base.vocabulary - 1}"
            )
        if params.max_tokens < 1 or len(prompt) + params.max_tokens > self._max_context:
            raise SamplerError(
                f"request {request_id}: {len(prompt)} prompt tokens and {params.max_tokens} to write do not fit "
                f"sampler.max_context={self._max_context}"
            )

    def read(self, reply: Reply, params: SamplingParams, request_id: str) -> Generation:
        """The tokens up to where the text ends. Raises SamplerError where a log-prob is not a number."""
        found, finish = reply.meta_info.output_token_logprobs, reply.meta_info.finish_reason
        ids = [token for _, token, _ in found]
        logprobs = [math.nan if logprob is None else logprob for logprob, _, _ in found]
        if not all(map(math.isfinite, logprobs)):
            raise SamplerError(f"request {request_id}: a log-prob of its answer is not a finite number")
        reason: FinishReason = "stop"
        stop = stops_at(params.stop, self._pieces(ids)) if params.stop else None
        if stop is not None:
            ids, logprobs = ids[:stop], logprobs[:stop]
        elif finish is None or finish.type == "abort":
            reason = "abort"
        elif finish.type == "length" and ids and ids[-1] not in self.end_ids:
            reason = "length"
        return Generation(output_ids=tuple(ids), logprobs=tuple(logprobs), finish_reason=reason)

    def _pieces(self, ids: list[int]) -> list[str]:
        pieces = Pieces()
        return [pieces.add(token, self._decode) for token in ids]
