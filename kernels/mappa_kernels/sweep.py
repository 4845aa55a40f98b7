"""One pass over the vocabulary: what it yields, what a back-end of it must offer, and the reference in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# The reference's tiles: 16 MB of fp32 logits at a time.
TOKEN_CHUNK = 1024
VOCABULARY_TILE = 4096


class Sweep(NamedTuple):
    """What one pass over the vocabulary yields; all in the accumulation type."""

    logprob: Tensor
    """[T]"""
    entropy: Tensor
    """[T], nats"""
    maximum: Tensor
    """[T], the largest logit m, as the back-end's own `weight_gradient` takes it"""
    log_total: Tensor
    """[T], log of the sum of exp(z - m). Apart from m: their sum, rounded, would be as coarse as large logits are"""
    direction: Tensor | None
    """[T, H], u: the gradient of logprob in hidden"""
    entropy_direction: Tensor | None
    """[T, H], the gradient of entropy in hidden"""


class Engine(Protocol):
    """One back-end's two passes. Shapes as in `linear_logprob`; `inverse_temperature` is [T]."""

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        *,
        direction: bool,
        entropy_direction: bool,
    ) -> Sweep: ...

    def weight_gradient(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        maximum: Tensor,
        log_total: Tensor,
        entropy: Tensor,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor: ...


class EagerEngine:
    """The sweep in plain torch: vocabulary tiles outside (each converted once), token chunks inside."""

    def sweep(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        *,
        direction: bool,
        entropy_direction: bool,
    ) -> Sweep:
        chunks = [
            _Chunk(hidden[rows], targets[rows], inverse_temperature[rows], direction, entropy_direction)
            for rows in _slices(hidden.shape[0], TOKEN_CHUNK)
        ]
        for columns in _slices(weight.shape[0], VOCABULARY_TILE):
            tile = weight[columns].detach().to(inverse_temperature.dtype)
            for chunk in chunks:
                chunk.add(tile, columns.start)
        finished = [chunk.finish(weight) for chunk in chunks]
        return joined(finished)

    def weight_gradient(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        inverse_temperature: Tensor,
        maximum: Tensor,
        log_total: Tensor,
        entropy: Tensor,
        grad_logprob: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor:
        """[V, H]: sum_t (d loss / d z_tv) h_t / tau_t, one vocabulary tile after the other."""
        gradient = torch.empty_like(weight)
        for columns in _slices(weight.shape[0], VOCABULARY_TILE):
            tile = weight[columns].to(inverse_temperature.dtype)
            total = torch.zeros_like(tile)
            for rows in _slices(hidden.shape[0], TOKEN_CHUNK):
                states, scale = hidden[rows].to(tile.dtype), inverse_temperature[rows, None]
                log_p = (states @ tile.T).mul_(scale).sub_(maximum[rows, None]).sub_(log_total[rows, None])
                share = log_p.exp() * grad_logprob[rows, None]
                if grad_entropy is not None:
                    share += log_p.exp() * (log_p + entropy[rows, None]) * grad_entropy[rows, None]
                share.neg_()
                _add_at_targets(share, targets[rows] - columns.start, grad_logprob[rows])
                total.addmm_(share.T, states * scale)
            gradient[columns] = total.to(weight.dtype)
        return gradient


class _Chunk:
    """Running statistics of a chunk of rows: maximum m, sum of e = exp(z - m), of e (z - m), of e W, of e (z - m) W."""

    def __init__(
        self, hidden: Tensor, targets: Tensor, inverse_temperature: Tensor, direction: bool, entropy_direction: bool
    ) -> None:
        self.states = hidden.detach().to(inverse_temperature.dtype)
        self.targets, self.scale = targets, inverse_temperature
        self.maximum = torch.full_like(inverse_temperature, -torch.inf)
        self.total, self.weighted, self.at_target = (torch.zeros_like(inverse_temperature) for _ in range(3))
        self.mean_row = torch.zeros_like(self.states) if direction else None
        self.weighted_row = torch.zeros_like(self.states) if entropy_direction else None

    def add(self, tile: Tensor, start: int) -> None:
        """Take in the logits of vocabulary rows [start, start + len(tile))."""
        logits = (self.states @ tile.T) * self.scale[:, None]
        here = (self.targets >= start) & (self.targets < start + tile.shape[0])
        column = torch.where(here, self.targets - start, 0)
        self.at_target = torch.where(here, logits.gather(1, column[:, None]).squeeze(1), self.at_target)
        self._raise_maximum(torch.maximum(self.maximum, logits.amax(1)))
        logits -= self._shift()[:, None]
        shares = logits.exp()
        logits.clamp_(min=torch.finfo(logits.dtype).min)  # so that 0 * -inf is 0
        self.total += shares.sum(1)
        if self.mean_row is not None:
            self.mean_row.addmm_(shares, tile)
        shares *= logits
        self.weighted += shares.sum(1)
        if self.weighted_row is not None:
            self.weighted_row.addmm_(shares, tile)

    def finish(self, weight: Tensor) -> Sweep:
        """What the sweep yields for these rows."""
        log_total = self.total.log()
        logprob = (self.at_target - self._shift()) - log_total
        mean_deviation = self.weighted / self.total
        direction = entropy_direction = None
        if self.mean_row is not None:
            self.mean_row /= self.total[:, None]
            chosen = weight[self.targets].detach().to(self.scale.dtype)
            direction = (chosen - self.mean_row) * self.scale[:, None]
            if self.weighted_row is not None:
                covariance = self.weighted_row / self.total[:, None] - mean_deviation[:, None] * self.mean_row
                entropy_direction = -covariance * self.scale[:, None]
        return Sweep(logprob, log_total - mean_deviation, self._shift(), log_total, direction, entropy_direction)

    def _shift(self) -> Tensor:
        # A row of -inf logits keeps its maximum at -inf; subtracting that would make NaN.
        return torch.where(self.maximum == -torch.inf, 0.0, self.maximum)

    def _raise_maximum(self, maximum: Tensor) -> None:
        """Bring every sum from exp(z - old maximum) to exp(z - new maximum)."""
        seen = self.total > 0
        drop = torch.where(seen, self.maximum - maximum, 0.0)
        factor = torch.where(seen, drop.exp(), 0.0)
        if self.weighted_row is not None and self.mean_row is not None:
            self.weighted_row.addcmul_(self.mean_row, drop[:, None]).mul_(factor[:, None])
        if self.mean_row is not None:
            self.mean_row *= factor[:, None]
        self.weighted = (self.weighted + drop * self.total) * factor
        self.total *= factor
        self.maximum = maximum


def _slices(total: int, step: int) -> list[slice]:
    """[0, total) in steps; one empty slice where there is nothing, so that results keep their shapes."""
    return [slice(start, min(start + step, total)) for start in range(0, max(total, 1), step)]


def _add_at_targets(share: Tensor, column: Tensor, values: Tensor) -> None:
    """share[t, column[t]] += values[t] where the column lies in this tile. One entry a row: no order to depend on."""
    here = (column >= 0) & (column < share.shape[1])
    rows = torch.nonzero(here).squeeze(1)
    share[rows, column[rows]] += values[rows]


def joined(chunks: Sequence[Sweep]) -> Sweep:
    """The rows of all chunks, in their order."""
    if len(chunks) == 1:
        return chunks[0]
    logprob, entropy, maximum, log_total = (
        torch.cat(parts)
        for parts in zip(*((c.logprob, c.entropy, c.maximum, c.log_total) for c in chunks), strict=True)
    )
    directions = ([c.direction for c in chunks], [c.entropy_direction for c in chunks])
    return Sweep(logprob, entropy, maximum, log_total, *(_cat(parts) for parts in directions))


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    """None where the field was not computed."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
