"""Continuous batching over one base: rows of all roles decoded together, shared prompt beginnings computed once.

The engine is synchronous and belongs to one thread. `admit` takes requests in while there is room, `step` gives every
row one more token; a finished row's place is taken by the next request. A sampled token depends on its request's seed
and position alone, not on what else is in the batch (up to the rounding of matrix products).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy
import torch
import torch.nn.functional as F

from mappa.errors import AdapterError
from mappa.model.base import Base
from mappa.model.lora import Adapter, Router
from mappa.sampler.cache import DecodePlan, PrefillPlan, Prefix, RowCache
from mappa.types import FinishReason, Generation, SamplingParams

_SHORTEST_PREFIX = 32  # tokens; below this, sharing saves less than it costs
_PREFIXES_PER_ADAPTER = 4


class Request:
    """One continuation being written."""

    def __init__(self, id: str, prompt: tuple[int, ...], adapter: str, params: SamplingParams) -> None:
        self.id = id
        self.prompt = prompt
        self.adapter = adapter
        self.params = params
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: FinishReason | None = None
        self.prefix: Prefix | None = None
        self.slot = -1
        self._text = ""
        self._stop = re.compile(params.stop) if params.stop else None
        self._uniforms = numpy.random.Generator(numpy.random.Philox(params.seed)).random(params.max_tokens)

    @property
    def uniform(self) -> float:
        """The random number that picks the next token."""
        return float(self._uniforms[len(self.ids)])

    @property
    def own(self) -> int:
        """Tokens in the row's slot: all but the prefix, and the newest token is not in yet."""
        return len(self.prompt) - (len(self.prefix.tokens) if self.prefix else 0) + max(0, len(self.ids) - 1)

    @property
    def position(self) -> int:
        """Position of the newest token."""
        return len(self.prompt) + len(self.ids) - 1

    def take(self, token: int, logprob: float, piece: str, is_end: bool) -> None:
        """Add a sampled token and see whether it ends the text."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self._text += piece
        if is_end or (self._stop is not None and self._stop.search(self._text)):
            self.finish = "stop"
        elif len(self.ids) == self.params.max_tokens:
            self.finish = "length"

    def generation(self) -> Generation:
        assert self.finish is not None
        return Generation(output_ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.finish)


class Engine:
    """Rows being decoded, requests waiting for a row, and the adapters they may name."""

    def __init__(self, base: Base, router: Router, *, max_rows: int) -> None:
        config = base.model.config
        self.base = base
        self.router = router
        self.max_rows = max_rows
        self.adapters: dict[str, Adapter] = {}
        self.rows: list[Request] = []  # in slot order
        self.waiting: deque[Request] = deque()
        self.tokens = 0  # sampled since the start
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._cache = RowCache(config.num_hidden_layers, config.num_key_value_heads, dim, base.dtype)
        self._prefixes: dict[str, list[Prefix]] = {}
        self._pieces: dict[int, str] = {}

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        if name in self.adapters:
            raise AdapterError(f"adapter {name!r} was published before; a name is never reused, publish the next version")
        self.adapters[name] = {key: (a.detach().clone(), b.detach().clone()) for key, (a, b) in adapter.items()}

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Rows that run with it must have finished."""
        self.adapters.pop(name, None)
        self._prefixes.pop(name, None)

    @torch.inference_mode()
    def advance(self) -> list[Request]:
        """Take waiting requests in, give every row a token, and return the requests that finished."""
        finished = self._admit() if self.waiting and len(self.rows) < self.max_rows else []
        if self.rows:
            self._step()
            finished += self._remove(lambda row: row.finish is not None)
        return finished

    def abort(self, prefix: str) -> list[Request]:
        """End the requests whose id starts with `prefix` and return them."""
        chosen = [request for request in (*self.waiting, *self.rows) if request.id.startswith(prefix)]
        for request in chosen:
            request.finish = "abort"
        self.waiting = deque(request for request in self.waiting if request.finish is None)
        self._remove(lambda row: row.finish is not None)
        return chosen

    def _admit(self) -> list[Request]:
        """Prefill waiting requests into free slots; each comes out with its first token."""
        room = self.max_rows - len(self.rows)
        new = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        for adapter in dict.fromkeys(request.adapter for request in new):
            self._share(adapter, [request for request in new if request.adapter == adapter])
        new.sort(key=lambda request: request.adapter)
        self._cache.reserve(
            len(self.rows) + len(new), max(request.own + request.params.max_tokens for request in new)
        )
        for request in new:
            request.slot = len(self.rows)
            self.rows.append(request)
        own = [request.prompt[len(request.prefix.tokens) if request.prefix else 0 :] for request in new]
        plan = PrefillPlan([(len(o), r.prefix, r.slot) for o, r in zip(own, new, strict=True)], self._cache)
        hidden = self._forward(new, own, plan)
        last = torch.tensor([len(tokens) for tokens in own]).cumsum(0) - 1
        self._sample(new, hidden[last])
        return self._remove(lambda row: row.finish is not None)

    def _share(self, adapter: str, requests: Sequence[Request]) -> None:
        """Give each request the longest stored prefix of its prompt, making one where several prompts begin alike."""
        known = self._prefixes.setdefault(adapter, [])
        for request in requests:
            request.prefix = _longest(known, request.prompt)
        lone = [request for request in requests if request.prefix is None]
        common = _common([request.prompt for request in lone])
        if len(lone) < 2 or common < _SHORTEST_PREFIX:
            return
        prefix = Prefix(lone[0].prompt[:common], len(self.base.decoder.layers))
        self._forward(lone[:1], [prefix.tokens], PrefillPlan([(common, None, prefix)], self._cache), start=True)
        known.append(prefix)
        del known[:-_PREFIXES_PER_ADAPTER]
        for request in lone:
            request.prefix = prefix

    def _step(self) -> None:
        """One token for every row."""
        rows = sorted(self.rows, key=lambda row: (row.adapter, id(row.prefix)))
        groups = [
            (first, end, rows[first].prefix) for first, end in _runs([(row.adapter, id(row.prefix)) for row in rows])
        ]
        plan = DecodePlan([row.slot for row in rows], [row.own for row in rows], groups, self._cache)
        hidden = self._forward(rows, [(row.ids[-1],) for row in rows], plan)
        self._sample(rows, hidden)

    def _forward(
        self,
        rows: Sequence[Request],
        tokens: Sequence[Sequence[int]],
        plan: PrefillPlan | DecodePlan,
        *,
        start: bool = False,
    ) -> torch.Tensor:
        """Hidden states [tokens, features] of the rows' `tokens`, flat in row order; rows are sorted by adapter."""
        from mappa.model.attention import decode_layers

        lengths = [len(run) for run in tokens]
        ends = numpy.cumsum([0, *lengths])
        runs = _runs([row.adapter for row in rows])
        adapters = [self.adapters[rows[first].adapter] for first, _ in runs]
        offsets = [0, *(int(ends[end]) for _, end in runs)]
        decoding = isinstance(plan, DecodePlan)
        positions = torch.cat(
            [
                torch.arange(n) + (row.position if decoding else 0 if start else len(row.prompt) - n)
                for row, n in zip(rows, lengths, strict=True)
            ]
        )
        flat = torch.tensor([token for run in tokens for token in run])
        with self.router.route(adapters, offsets):
            hidden = decode_layers(self.base.decoder, self.base.decoder.embed_tokens(flat)[None], positions, plan)
        return hidden[0]

    def _sample(self, rows: Sequence[Request], hidden: torch.Tensor) -> None:
        logits = F.linear(self.base.decoder.norm(hidden), self.base.head).float()
        temperature = torch.tensor([row.params.temperature for row in rows])
        uniform = torch.tensor([row.uniform for row in rows], dtype=torch.float64)
        ids, logprobs = sample_tokens(logits, temperature, uniform)
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            row.take(token, logprob, self._piece(token), token in self.base.end_ids)
        self.tokens += len(rows)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.base.text((token,))
        return self._pieces[token]

    def _remove(self, done) -> list[Request]:  # type: ignore[no-untyped-def]
        """Take rows out and close the gaps with rows from the end."""
        gone = [row for row in self.rows if done(row)]
        for row in sorted(gone, key=lambda row: -row.slot):
            last = self.rows.pop()
            if last is not row:
                self._cache.move(last.slot, row.slot, last.own)
                last.slot = row.slot
                self.rows[row.slot] = last
        return gone


def sample_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick a token per row by inverting the distribution at `uniform`; temperature 0 takes the likeliest.

    logits [rows, vocabulary] fp32, temperature [rows], uniform [rows] in [0, 1). Returns ids [rows] and their
    log-probs [rows] under softmax(logits / temperature), or at temperature 1 for greedy rows.
    """
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    logprobs = torch.log_softmax(scaled, dim=-1)
    cumulative = logprobs.exp().cumsum(dim=-1)
    threshold = (uniform * cumulative[:, -1].double()).float()[:, None]
    drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    ids = torch.where(greedy, logits.argmax(dim=-1), drawn)
    return ids, logprobs.gather(1, ids[:, None])[:, 0]


def _longest(prefixes: Iterable[Prefix], prompt: tuple[int, ...]) -> Prefix | None:
    fits = [p for p in prefixes if len(p.tokens) < len(prompt) and prompt[: len(p.tokens)] == p.tokens]
    return max(fits, key=lambda p: len(p.tokens), default=None)


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common beginning, leaving every prompt at least one token of its own."""
    if not prompts:
        return 0
    low, high = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def _runs(keys: Sequence[object]) -> list[tuple[int, int]]:
    """Half-open index ranges of equal neighbours."""
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))


