"""Continuous batching over one base: rows of all roles decoded together, shared prompt beginnings computed once.

The engine is synchronous and belongs to one thread. `advance` takes requests in while there is room and gives every
row at least one more token, more where its guesses come true (see `draft`); a finished row's place is taken by the next
request. A sampled token depends on its request's seed and position alone, not on guesses or on what else is in the
batch: up to the rounding of matrix products, and to the last bit where the engine is `exact`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

import numpy
import torch
import torch.nn.functional as F

from mappa.errors import AdapterError
from mappa.model.attention import decode_layers
from mappa.model.base import Base
from mappa.model.lora import Adapter, Router
from mappa.sampler.cache import DecodePlan, LonePlan, PrefillPlan, Prefix, RowCache
from mappa.sampler.draft import Draft
from mappa.sampler.stopping import Decode, Pieces, remembering
from mappa.types import FinishReason, Generation, SamplingParams

_SHORTEST_PREFIX = 32  # tokens; below this, sharing saves less than it costs
_PREFIXES_PER_ADAPTER = 4
_EXACT_ROWS = (
    16  # an exact engine multiplies multiples of so many rows: from 4 on, how many did not change a row's bits
)
_COLD = 1e-6  # a temperature; above it, logits up to 1e32 can be divided
_LONG = 64  # tokens; a step pads every row's queries to the longest, so longer prompts go through alone


class Request:
    """One continuation being written. `ends` are the tokens that end it, where they are not the base's own."""

    def __init__(
        self,
        id: str,
        prompt: tuple[int, ...],
        adapter: str,
        params: SamplingParams,
        ends: frozenset[int] | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.adapter = adapter
        self.params = params
        self.ends = ends
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish: FinishReason | None = None
        self.prefix: Prefix | None = None
        self.slot = -1
        self.draft = Draft(prompt)
        self._text = ""  # kept where there is a pattern to look for
        self._pieces = Pieces()
        self._stop = re.compile(params.stop) if params.stop else None
        self._uniforms = numpy.random.Generator(numpy.random.Philox(params.seed)).random(params.max_tokens)

    def uniform(self, ahead: int) -> float:
        """The random number that picks the token `ahead` places after the next."""
        return float(self._uniforms[len(self.ids) + ahead])

    def guess(self) -> list[int]:
        """Tokens that may follow the newest one, never past the token limit."""
        return self.draft.guess(self.params.max_tokens - len(self.ids) - 1)

    @property
    def own(self) -> tuple[int, ...]:
        """The prompt behind its prefix."""
        return self.prompt[len(self.prefix.tokens) if self.prefix else 0 :]

    @property
    def held(self) -> int:
        """Tokens in its slot. The newest token is not in yet, and of a row that has none nothing is."""
        return len(self.own) + len(self.ids) - 1 if self.ids else 0

    @property
    def position(self) -> int:
        """Position of the first token that is not in the slot."""
        return len(self.prompt) + len(self.ids) - 1 if self.ids else len(self.prompt) - len(self.own)

    def take(self, token: int, logprob: float, decode: Decode, is_end: bool) -> None:
        """Add a sampled token and see whether it ends the text."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.draft.add(token)
        if self._stop is not None:
            self._text += self._pieces.add(token, decode)
        if is_end or (self._stop is not None and self._stop.search(self._text)):
            self.finish = "stop"
        elif len(self.ids) == self.params.max_tokens:
            self.finish = "length"

    def generation(self) -> Generation:
        assert self.finish is not None
        return Generation(output_ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.finish)


class Engine:
    """Rows being decoded, requests waiting for a row, and the adapters they may name."""

    def __init__(self, base: Base, router: Router, *, max_rows: int, exact: bool = False) -> None:
        config = base.model.config
        self.exact = exact
        self.base = base
        self.router = router
        self.max_rows = max_rows
        self.adapters: dict[str, Adapter] = {}
        self.rows: list[Request] = []  # in slot order
        self.waiting: deque[Request] = deque()
        self.tokens = 0  # sampled since the start
        self.passes = 0  # decoding passes since the start
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._cache = RowCache(
            config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, dim, base.dtype
        )
        self._prefixes: dict[str, list[Prefix]] = {}
        self._beginnings: dict[str, tuple[tuple[int, ...], int]] = {}  # by role: how its prompts begin, of how many
        self._decode = remembering(base.text)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        if name in self.adapters:
            raise AdapterError(
                f"adapter {name!r} was published before; a name is never reused, publish the next version"
            )
        dtype = self.base.dtype
        self.adapters[name] = {
            key: (a.detach().to(dtype, copy=True), b.detach().to(dtype, copy=True)) for key, (a, b) in adapter.items()
        }

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Rows that run with it must have finished."""
        self.adapters.pop(name, None)
        self._prefixes.pop(name, None)

    @torch.inference_mode()
    def advance(self) -> list[Request]:
        """Take waiting requests in, give every row at least a token, and return the requests that finished."""
        if self.waiting and len(self.rows) < self.max_rows:
            self._admit()
        if self.rows:
            self._step()
        return self._remove_finished()

    @torch.inference_mode()
    def abort(self, prefix: str) -> list[Request]:
        """End the requests whose id starts with `prefix` and return them."""
        return self._end([request for request in (*self.waiting, *self.rows) if request.id.startswith(prefix)])

    @torch.inference_mode()
    def cancel(self, request: Request) -> list[Request]:
        """End this request alone and return it, unless it is over already."""
        return self._end([one for one in (*self.waiting, *self.rows) if one is request])

    def _end(self, chosen: list[Request]) -> list[Request]:
        for request in chosen:
            request.finish = "abort"
        self.waiting = deque(request for request in self.waiting if request.finish is None)
        self._remove_finished()
        return chosen

    def _admit(self) -> None:
        """Give waiting requests the free slots. What is left of a prompt behind its prefix goes through with the next
        step of all rows, unless it is so long that it is computed at once."""
        room = self.max_rows - len(self.rows)
        new = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        for adapter in () if self.exact else dict.fromkeys(request.adapter for request in new):
            self._share(adapter, [request for request in new if request.adapter == adapter])
        self._cache.reserve(
            len(self.rows) + len(new), max(len(request.own) + request.params.max_tokens for request in new)
        )
        for request in new:
            request.slot = len(self.rows)
            self.rows.append(request)
        long = sorted((r for r in new if len(r.own) > _LONG), key=lambda request: request.adapter)
        if long and not self.exact:
            own = [request.own for request in long]
            plan = PrefillPlan([(len(o), r.prefix, r.slot) for o, r in zip(own, long, strict=True)], self._cache)
            hidden = self._forward(long, own, [request.position for request in long], plan)
            last = torch.tensor([len(tokens) for tokens in own]).cumsum(0) - 1
            self._sample(long, [[]] * len(long), hidden[last])

    def _share(self, adapter: str, requests: Sequence[Request]) -> None:
        """Give each request the longest stored prefix of its prompt, making one of how its role's prompts begin.

        How a role's prompts begin outlives its adapter's versions: it is text, only its keys and values are not.
        """
        role = adapter.rpartition("@")[0] or adapter
        beginning, seen = self._beginnings.get(role, (requests[0].prompt, 0))
        for request in requests:
            common = _common(beginning, request.prompt)
            # A prompt that begins in another way starts the count again.
            beginning, seen = (beginning[:common], seen + 1) if common >= _SHORTEST_PREFIX else (request.prompt, 1)
        self._beginnings[role] = (beginning, seen)
        known = self._prefixes.setdefault(adapter, [])
        lone = [request for request in requests if _longest(known, request.prompt) is None]
        if seen > 1 and any(request.prompt[: len(beginning)] == beginning for request in lone):
            prefix = Prefix(beginning, len(self.base.decoder.layers))
            self._forward(lone[:1], [beginning], [0], PrefillPlan([(len(beginning), None, prefix)], self._cache))
            known.append(prefix)
            del known[:-_PREFIXES_PER_ADAPTER]
        for request in requests:
            request.prefix = _longest(known, request.prompt)

    def _step(self) -> None:
        """One pass over what every row has new: of a fresh row its prompt, of others the newest token and guesses."""
        rows = sorted(self.rows, key=lambda row: (row.adapter, id(row.prefix)))
        keys = [(row.adapter, id(row.prefix)) for row in rows]
        groups = [(first, end, rows[first].prefix) for first, end in _runs(keys)]
        guesses = [row.guess() if row.ids else [] for row in rows]
        tokens = [(row.ids[-1], *guess) if row.ids else row.own for row, guess in zip(rows, guesses, strict=True)]
        if self.exact:
            hidden, ends = self._forward_exactly(rows, tokens)
        else:
            plan = DecodePlan(
                [row.slot for row in rows],
                [row.held for row in rows],
                [len(run) for run in tokens],
                groups,
                self._cache,
            )
            hidden = self._forward(rows, tokens, [row.position for row in rows], plan)
            ends = numpy.cumsum([len(run) for run in tokens]).tolist()
        # Of a prompt only the last token says something new.
        sampled = [range(end - len(guess) - 1, end) for end, guess in zip(ends, guesses, strict=True)]
        self._sample(rows, guesses, hidden[torch.tensor([row for run in sampled for row in run])])
        self.passes += 1

    def _forward_exactly(
        self, rows: Sequence[Request], tokens: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, list[int]]:
        """As `_forward`, with padding behind each adapter's rows, so that every product has a multiple of 16 rows.
        Returns hidden states, padding included, and where each row's end."""
        flat: list[int] = []
        positions: list[int] = []
        places, ends, offsets = [], [], [0]
        runs = _runs([row.adapter for row in rows])
        for first, end in runs:
            for row, run in zip(rows[first:end], tokens[first:end], strict=True):
                places.append((row.slot, row.held, len(run), len(flat)))
                flat += run
                positions += range(row.position, row.position + len(run))
                ends.append(len(flat))
            padding = -len(flat) % _EXACT_ROWS
            flat += [0] * padding
            positions += [0] * padding
            offsets.append(len(flat))
        with self.router.route([self.adapters[rows[first].adapter] for first, _ in runs], offsets):
            embedded = self.base.decoder.embed_tokens(torch.tensor(flat))[None]
            hidden = decode_layers(self.base.decoder, embedded, torch.tensor(positions), LonePlan(places, self._cache))
        return hidden[0], ends

    def _forward(
        self,
        rows: Sequence[Request],
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        plan: PrefillPlan | DecodePlan,
    ) -> torch.Tensor:
        """Hidden states [tokens, features] of the rows' `tokens`, flat in row order; rows are sorted by adapter.

        `starts` are the positions of each row's first token.
        """
        lengths = [len(run) for run in tokens]
        ends = numpy.cumsum([0, *lengths])
        runs = _runs([row.adapter for row in rows])
        adapters = [self.adapters[rows[first].adapter] for first, _ in runs]
        offsets = [0, *(int(ends[end]) for _, end in runs)]
        positions = torch.cat([torch.arange(at, at + n) for at, n in zip(starts, lengths, strict=True)])
        flat = torch.tensor([token for run in tokens for token in run])
        with self.router.route(adapters, offsets):
            hidden = decode_layers(self.base.decoder, self.base.decoder.embed_tokens(flat)[None], positions, plan)
        return hidden[0]

    def _sample(self, rows: Sequence[Request], guesses: Sequence[list[int]], hidden: torch.Tensor) -> None:
        """Sample at every position, and let each row take tokens up to the first that its guess did not foresee."""
        count = len(hidden)
        if self.exact:
            hidden = F.pad(hidden, (0, 0, 0, -count % _EXACT_ROWS))
        logits = F.linear(self.base.decoder.norm(hidden), self.base.head)[:count].float()
        at = [(row, ahead) for row, guess in zip(rows, guesses, strict=True) for ahead in range(len(guess) + 1)]
        temperature = torch.tensor([row.params.temperature for row, _ in at])
        uniform = torch.tensor([row.uniform(ahead) for row, ahead in at], dtype=torch.float64)
        ids, logprobs = sample_tokens(logits, temperature, uniform)
        sampled = iter(zip(ids.tolist(), logprobs.tolist(), strict=True))
        for row, guess in zip(rows, guesses, strict=True):
            found = [next(sampled) for _ in range(len(guess) + 1)]
            right = 0
            for (token, logprob), guessed in zip(found, [*guess, None], strict=True):
                ends = self.base.end_ids if row.ends is None else row.ends
                row.take(token, logprob, self._decode, token in ends)
                self.tokens += 1
                if row.finish is not None or token != guessed:
                    break
                right += 1
            row.draft.learn(len(guess), right)

    def _remove_finished(self) -> list[Request]:
        """Take finished rows out and close the gaps with rows from the end."""
        gone = [row for row in self.rows if row.finish is not None]
        for row in sorted(gone, key=lambda row: -row.slot):
            last = self.rows.pop()
            if last is not row:
                self._cache.move(last.slot, row.slot, last.held)
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
    if bool((temperature < _COLD).any()):  # divided by so little, logits overflow, but for the largest where it is 0
        logits = torch.where((temperature < _COLD)[:, None], logits - logits.amax(-1, keepdim=True), logits)
    probabilities = torch.softmax(logits / torch.where(greedy, 1.0, temperature)[:, None], dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1]
    # Rounded to the total itself, it would lie behind every token, and a last one of probability 0 would be picked.
    threshold = (uniform * total.double()).float().minimum(torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    if bool(greedy.any()):
        ids = torch.where(greedy, logits.argmax(dim=-1), ids)
    return ids, probabilities.gather(1, ids[:, None])[:, 0].log()


def _longest(prefixes: Iterable[Prefix], prompt: tuple[int, ...]) -> Prefix | None:
    fits = [p for p in prefixes if len(p.tokens) < len(prompt) and prompt[: len(p.tokens)] == p.tokens]
    return max(fits, key=lambda p: len(p.tokens), default=None)


def _common(beginning: tuple[int, ...], prompt: tuple[int, ...]) -> int:
    """Length of the common beginning, leaving the prompt at least one token of its own."""
    limit = min(len(beginning), len(prompt) - 1)
    return next((i for i in range(limit) if beginning[i] != prompt[i]), limit)


def _runs(keys: Sequence[object]) -> list[tuple[int, int]]:
    """Half-open index ranges of equal neighbours."""
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))
