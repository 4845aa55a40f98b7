"""Requests of several models through the base together: mixed-role packed passes, each model's result its own.

What a request computes must not depend on its company. So its sequences are divided into micro-batches as if it were
alone, and only whole micro-batches of different models are put together into passes: trees of shared prefixes, the
order in which gradients add up and every attention call are then the same. The kernels give every row the same bits in
any batch. What is left are the base's products, which a BLAS computes in another order for a few rows than for many:
passes are padded to a multiple of 16 rows, and from there on their number was not seen to matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.learn.packing import MicroBatch, pack
from mappa.learn.passes import Policy, Prepared
from mappa.model.base import Base
from mappa.model.lora import Router
from mappa.serve.losses import Loss
from mappa.serve.model import Model, ModelWeights
from mappa.types import Sample

_NO_LIMIT = 2**62
_ROWS = 16
_PADDING = ""  # the role of padding rows; no model is called so


class Datum(Struct, frozen=True, eq=False):
    """One training sequence: after tokens[: i + 1] come the targets[i]."""

    tokens: tuple[int, ...]
    targets: torch.Tensor
    """[L] or [L, K] int64"""
    inputs: dict[str, torch.Tensor]
    """What the loss takes beside the log-probs of the targets, each flat."""


class TrainRequest(Struct, frozen=True, eq=False):
    """One forward or forward_backward of one model."""

    model: Model
    data: tuple[Datum, ...]
    loss: Loss
    backward: bool


class TrainResult:
    """What a request has led to so far."""

    def __init__(self, request: TrainRequest) -> None:
        self.request = request
        self.logprobs = [torch.empty(0)] * len(request.data)
        """Per datum, in the shape of its targets."""
        self.loss = 0.0
        """Summed over all targets."""
        self.company = 1
        """Models in its step, this one included."""
        self.fault = ""
        """Why its gradient is of no use; empty where all is well."""


class Step:
    """One step of several requests, at most one of a model, all with a backward pass or all without.

    `passes` is to be exhausted; between two passes the base is free for others. `blank` are the weights of nobody,
    for padding.
    """

    def __init__(
        self, requests: Sequence[TrainRequest], base: Base, router: Router, blank: ModelWeights, config: LearnConfig
    ) -> None:
        self.results = [TrainResult(request) for request in requests]
        for result in self.results:
            result.company = len(requests)
        self._backward = requests[0].backward
        self._base = base
        self._router = router
        self._blank = blank
        self._config = config

    def passes(self) -> Iterator[None]:
        """Compute it, a pass at a time."""
        for parts in _group(self.results, self._config.tokens_per_micro_batch):
            with torch.set_grad_enabled(self._backward):
                self._run(parts)
            yield
        if self._backward:
            for result in self.results:
                if result.fault:
                    result.request.model.discard()
                else:
                    result.request.model.gather()

    def _run(self, parts: Sequence[_Part]) -> None:
        """One pass over the chosen data of each result, and padding behind them."""
        weights = {part.result.request.model.id: part.result.request.model.weights for part in parts}
        owners = [(part.result, index) for part in parts for index in part.chosen]
        samples = [_sample(result.request.model.id, result.request.data[index]) for result, index in owners]
        padding = _padding(-sum(part.tokens for part in parts) % _ROWS)
        if padding.tokens:
            weights[_PADDING] = self._blank
            samples.append(_sample(_PADDING, padding))
        roles = tuple(weights)
        policy = Policy(self._base, self._router, weights, replace(self._config, roles=roles), 1.0)
        (batch,) = pack(samples, roles, _NO_LIMIT)
        order = [owners[place] for place in batch.samples if place < len(owners)]
        data = [*(result.request.data[index] for result, index in order), *([padding] if padding.tokens else ())]
        item = Prepared(_aimed(batch, data), [datum.targets.numel() for datum in data], policy)
        logprob, _ = policy.logprobs(item)
        coefficients = []
        for (result, index), (_, values) in zip(order, item.split(logprob), strict=False):
            result.logprobs[index] = values.view(result.request.data[index].targets.shape)
            coefficients.append(_coefficients(result, index, values))
        coefficients.append(torch.zeros(len(padding.tokens)))
        if self._backward:
            (torch.cat(coefficients).to(logprob.device) * logprob).sum().backward()


class _Part(Struct, frozen=True, eq=False):
    """A micro-batch of one request: the data in it and the tokens computed for them."""

    result: TrainResult
    chosen: Sequence[int]
    tokens: int


def _group(results: Sequence[TrainResult], budget: int) -> list[list[_Part]]:
    """Passes of at most `budget` tokens where a lone micro-batch allows it; a model's micro-batches stay in order, at
    most one of them in a pass."""
    passes: list[list[_Part]] = []
    for result in results:
        model, after = result.request.model.id, 0
        for batch in pack([_sample(model, datum) for datum in result.request.data], (model,), budget):
            part = _Part(result, batch.samples, batch.tokens)
            sizes = [sum(other.tokens for other in parts) for parts in passes]
            fitting = (n for n in range(after, len(passes)) if sizes[n] + part.tokens <= budget)
            place = next(fitting, len(passes))
            if place == len(passes):
                passes.append([])
            passes[place].append(part)
            after = place + 1
    return passes


def _padding(rows: int) -> Datum:
    return Datum((0,) * rows, torch.zeros(rows, dtype=torch.int64), {})


def _sample(role: str, datum: Datum) -> Sample:
    """A datum as the packer knows it: every token predicts one more. What it predicts is put in by `_aimed`."""
    tokens = (*datum.tokens, 0)
    return Sample(role=role, tokens=tokens, spans=((1, len(tokens)),), logprobs=(), rewards=())


def _aimed(batch: MicroBatch, data: Sequence[Datum]) -> MicroBatch:
    """The micro-batch with the data's own targets in place of the tokens that follow; `data` in its samples' order."""
    rows = batch.predictors[batch.pick].split([len(datum.tokens) for datum in data])
    repeated = [
        row.repeat_interleave(datum.targets.numel() // len(datum.tokens)) for row, datum in zip(rows, data, strict=True)
    ]
    targets = torch.cat([datum.targets.flatten() for datum in data])
    width = int(targets.max()) + 1
    pairs, pick = (torch.cat(repeated) * width + targets).unique(return_inverse=True)
    return replace(batch, predictors=pairs // width, targets=pairs % width, pick=pick)


def _coefficients(result: TrainResult, index: int, values: torch.Tensor) -> torch.Tensor:
    """The derivative of the loss in each log-prob of a datum; zeros once something is not finite."""
    with torch.enable_grad():
        leaf = values.detach().requires_grad_()
        loss = result.request.loss(leaf, result.request.data[index].inputs).sum()
        (found,) = torch.autograd.grad(loss, leaf)
    for what, tensor in (("log-prob", values), ("loss", loss), ("gradient", found)):
        if not bool(tensor.isfinite().all()):
            result.fault = result.fault or f"the {what} of datum {index} is NaN or infinite; nothing was accumulated"
    result.loss += float(loss.detach())
    return torch.zeros_like(found) if result.fault else found
