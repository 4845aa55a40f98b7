"""Samples to packed micro-batches: a forest of shared prefixes per role, every shared token computed once.

Within a role, samples whose tokens begin alike (system prompt and worked examples, the samples of one task, a later
turn's context) hang off one path of nodes. Nothing is dropped and nothing is tokenised again. A token's log-prob is
predicted by the token before it on its path, wherever that lies in the row; two samples that are equal up to and
including a token share its computation altogether.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace

from mappa.errors import LearnError
from mappa.model.attention import Plan, tree_plan
from mappa.types import Sample

_SHORTEST_SHARED = 16  # tokens; a node of its own costs an attention call per layer
_PASS = 32  # tokens; what a pass costs whatever is in it


class MicroBatch(Struct, frozen=True, kw_only=True):
    """One forward and backward pass. T packed tokens, U distinct scored positions, N action tokens of its samples."""

    ids: torch.Tensor
    """[T] token ids, sorted by role."""
    positions: torch.Tensor
    """[T] position of each token in its sample."""
    lengths: tuple[int, ...]
    """Tokens of each node, in depth-first order."""
    parents: tuple[int, ...]
    """Parent of each node, -1 at a root."""
    role_offsets: tuple[int, ...]
    """[R + 1]: tokens role_offsets[r] to role_offsets[r + 1] are role r's."""
    rows: torch.Tensor
    """[U] rows whose hidden states predict an action token, ascending, each once."""
    predictors: torch.Tensor
    """[P] index into `rows`, one for every distinct (row, token it predicts)."""
    targets: torch.Tensor
    """[P] the token it predicts."""
    pick: torch.Tensor
    """[N] index into P of every action token, samples in the order of `samples`."""
    samples: tuple[int, ...]
    """Indices of its samples in the list that was packed."""

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> MicroBatch:
        """The same with its tensors on `device`."""
        names = ("ids", "positions", "rows", "predictors", "targets", "pick")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def plan(self, dtype: torch.dtype = torch.float32) -> Plan:
        """Who sees whom, for queries of `dtype` on the batch's device."""
        return tree_plan(self.lengths, self.parents, self.ids.device, dtype)


def pack(samples: Sequence[Sample], roles: Sequence[str], budget: int) -> list[MicroBatch]:
    """Pack every sample into micro-batches of about `budget` computed tokens, sharing prefixes within each, so that as
    little as possible is computed twice. What follows a sample's last action, and that action's last token, which
    nothing is predicted from, are not computed.

    A beginning too short to be worth a node is computed again, so a micro-batch may pass the budget by a few tokens.

    Raises LearnError for an action that does not fit with its own context: none of that may be left out.
    """
    order = _ordered(samples, roles)
    for index, _, own in order:
        if own > budget:
            raise LearnError(
                f"sample {samples[index].source or index}: its last action and the context of it, {own} tokens, do not "
                f"fit learn.tokens_per_micro_batch={budget}; raise it"
            )
    return [_micro_batch(samples, chosen, roles) for chosen in _cut(order, budget)]


def computed(sample: Sample) -> tuple[int, ...]:
    """The tokens of a sample that go through the model: all that some action token is predicted from."""
    return sample.tokens[: sample.spans[-1][1] - 1]


def _cut(order: Sequence[tuple[int, int, int]], budget: int) -> list[list[int]]:
    """Divide samples in their order into runs of at most `budget` tokens: of all ways the one that computes the fewest.

    Where a run begins, its first sample has nothing to share with, so it is best to cut where little was shared.
    """
    added = [0, *itertools.accumulate(cost for _, cost, _ in order)]
    least, begin = [0], [0]  # for the first n samples: the fewest tokens, and where their last run begins
    for end in range(1, len(order) + 1):
        best: tuple[int, int] | None = None
        for first in range(end - 1, -1, -1):
            size = order[first][2] + added[end] - added[first + 1]  # grows as the run does
            if size > budget and best is not None:
                break
            if best is None or least[first] + size + _PASS < best[0]:
                best = (least[first] + size + _PASS, first)
        assert best is not None
        least.append(best[0])
        begin.append(best[1])
    runs: list[list[int]] = []
    end = len(order)
    while end:
        runs.append([index for index, _, _ in order[begin[end] : end]])
        end = begin[end]
    return runs[::-1]


def padding(roles: Sequence[str]) -> MicroBatch:
    """The smallest micro-batch there is, for a rank that has nothing left while others still compute."""
    smallest = Sample(role=roles[0], tokens=(0, 0), spans=((1, 2),), logprobs=(0.0,), rewards=(0.0,))
    return _micro_batch([smallest], [0], roles)


def split_by_cost(samples: Sequence[Sample], roles: Sequence[str], parts: int) -> list[list[Sample]]:
    """Divide samples among ranks: equal computed tokens, neighbours that share a prefix kept together."""
    order = list(_ordered(samples, roles))
    total, done = sum(cost for _, cost, _ in order), 0
    shares: list[list[Sample]] = [[] for _ in range(parts)]
    for index, cost, _ in order:
        # The middle of a sample decides, so that no rank is left with only the remainder.
        shares[min(parts - 1, int((done + cost / 2) * parts / max(total, 1)))].append(samples[index])
        done += cost
    return shares


def _ordered(samples: Sequence[Sample], roles: Sequence[str]) -> list[tuple[int, int, int]]:
    """(index, tokens it adds behind its neighbour, its own tokens), so that shared prefixes are neighbours."""
    tokens = [computed(sample) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: (roles.index(samples[i].role), tokens[i]))
    result = []
    before: int | None = None
    for index in order:
        alike = before is not None and samples[before].role == samples[index].role
        shared = _common(tokens[before], tokens[index]) if alike and before is not None else 0
        result.append((index, len(tokens[index]) - shared, len(tokens[index])))
        before = index
    return result


def _micro_batch(samples: Sequence[Sample], chosen: Sequence[int], roles: Sequence[str]) -> MicroBatch:
    forest = _Forest()
    offsets = [0]
    for role in roles:
        sequences = sorted({computed(samples[i]) for i in chosen if samples[i].role == role})
        if sequences:
            forest.grow(sequences, depth=0, parent=-1, rows=())
        offsets.append(len(forest.ids))
    pairs: dict[tuple[int, int], int] = {}
    pick = []
    rows_of = {(role, tokens): rows for role, tokens, rows in _paths(samples, chosen, roles, forest)}
    for index in chosen:
        sample = samples[index]
        rows = rows_of[roles.index(sample.role), computed(sample)]
        for start, end in sample.spans:
            for t in range(start, end):
                pick.append(pairs.setdefault((rows[t - 1], sample.tokens[t]), len(pairs)))
    scored, predictors = torch.tensor([row for row, _ in pairs], dtype=torch.int64).unique(return_inverse=True)
    return MicroBatch(
        ids=torch.tensor(forest.ids),
        positions=torch.tensor(forest.positions),
        lengths=tuple(forest.lengths),
        parents=tuple(forest.parents),
        role_offsets=tuple(offsets),
        rows=scored,
        predictors=predictors,
        targets=torch.tensor([target for _, target in pairs], dtype=torch.int64),
        pick=torch.tensor(pick, dtype=torch.int64),
        samples=tuple(chosen),
    )


class _Forest:
    """Nodes in depth-first order, and the rows of every sequence that was grown."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.paths: list[tuple[tuple[int, ...], tuple[int, ...]]] = []  # (tokens, their rows)

    def grow(self, sequences: Sequence[tuple[int, ...]], *, depth: int, parent: int, rows: tuple[int, ...]) -> None:
        """Add sorted, distinct sequences that agree in their first `depth` tokens, which lie in `rows`."""
        common = _common(sequences[0], sequences[-1])
        if len(sequences) == 1 or common - depth >= _SHORTEST_SHARED or len(sequences[0]) == common:
            parent, rows = self._node(sequences[0][depth:common], depth, parent, rows)
            depth = common
        if len(sequences[0]) == depth:  # sorted first: it is the beginning of all the others
            self.paths.append((sequences[0], rows))
            sequences = sequences[1:]
        for group in _alike(sequences, depth + _SHORTEST_SHARED):
            if len(group) == 1:
                _, own = self._node(group[0][depth:], depth, parent, rows)
                self.paths.append((group[0], own))
            else:
                self.grow(group, depth=depth, parent=parent, rows=rows)

    def _node(
        self, tokens: tuple[int, ...], depth: int, parent: int, rows: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        if not tokens:
            return parent, rows
        first = len(self.ids)
        self.ids.extend(tokens)
        self.positions.extend(range(depth, depth + len(tokens)))
        self.lengths.append(len(tokens))
        self.parents.append(parent)
        return len(self.lengths) - 1, (*rows, *range(first, first + len(tokens)))


def _paths(
    samples: Sequence[Sample], chosen: Sequence[int], roles: Sequence[str], forest: _Forest
) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Forest paths with the role they belong to: roles were grown one after the other."""
    sizes = [len({computed(samples[i]) for i in chosen if samples[i].role == role}) for role in roles]
    role_of = itertools.chain.from_iterable([role] * size for role, size in enumerate(sizes))
    return [(role, tokens, rows) for role, (tokens, rows) in zip(role_of, forest.paths, strict=True)]


def _alike(sequences: Sequence[tuple[int, ...]], depth: int) -> list[list[tuple[int, ...]]]:
    """Runs of neighbours that agree in their first `depth` tokens."""
    groups: list[list[tuple[int, ...]]] = []
    for sequence in sequences:
        if groups and len(sequence) >= depth and sequence[:depth] == groups[-1][-1][:depth]:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next(i for i in range(limit) if a[i] != b[i])
