"""`linear_logprob` on a GPU: chunks of tokens against chunks of the vocabulary (kernels in sweep_kernels.py)."""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from mappa_kernels import dispatch
from mappa_kernels.gpu import configs
from mappa_kernels.gpu import sweep_kernels as kernels
from mappa_kernels.gpu.configs import Config, Measure, config, milliseconds
from mappa_kernels.sweep import Sweep, joined

TOKENS = 4096
"""Tokens of a chunk."""
VOCABULARY = 8192
"""Vocabulary rows of a chunk while numerators are kept: 64 MB of them in bf16."""
BAND = 8
"""Row tiles whose programs run side by side."""


class TritonEngine:
    """One launch of `logits`, `merge` and `accumulate` per chunk; sums merge in the order of the vocabulary."""

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
        hidden, weight = _rows(hidden), _rows(weight)
        chunks = [
            _Chunk(hidden[rows], weight, targets[rows], inverse_temperature[rows], direction, entropy_direction)
            for rows in _slices(len(hidden), TOKENS)
        ]
        with torch.cuda.device_of(hidden):
            parts = [chunk.run() for chunk in chunks]
        return joined(parts)

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
        """Vocabulary chunks outside, so that each chunk's gradient is summed over all tokens in fp32."""
        hidden, weight = _rows(hidden), _rows(weight)
        grad_entropy = torch.zeros_like(grad_logprob) if grad_entropy is None else grad_entropy.contiguous()
        per_token = (
            targets, inverse_temperature, maximum, log_total, entropy, grad_logprob.contiguous(), grad_entropy,
        )  # fmt: skip
        gradient = torch.empty_like(weight)
        with torch.cuda.device_of(hidden):
            for columns in _slices(len(weight), VOCABULARY):
                total = torch.zeros(columns.stop - columns.start, weight.shape[1], device=weight.device)
                for rows in _slices(len(hidden), TOKENS):
                    states = hidden[rows]
                    shares = _coefficients(states, weight, [values[rows] for values in per_token], columns)
                    _accumulate(shares.T, states, total)
                gradient[columns] = total.to(weight.dtype)
        return gradient


def tune(width: int, dtype: torch.dtype, device: torch.device, measure: Measure = milliseconds) -> dict[str, Config]:
    """Measure the kernels on this machine for a head of this width, and use the fastest in this process from now on.

    On made-up inputs of one chunk's size. `accumulate` changes its input: it is never run to be measured. Tiles decide
    the order of sums, so call it before the first result that is to be reproduced, or not at all.
    """
    hidden, weight = (torch.randn(rows, width, device=device).to(dtype) for rows in (TOKENS, VOCABULARY))
    targets, scale = torch.zeros(TOKENS, dtype=torch.int64, device=device), torch.ones(TOKENS, device=device)
    best = {}
    with torch.cuda.device_of(hidden):
        for kind in ("logits", "numerators", "weighted"):
            chunk = _Chunk(hidden, weight, targets, scale, kind != "logits", kind == "weighted")
            run = functools.partial(chunk.multiply, slice(0, VOCABULARY))
            best[kind] = configs.tune(kind, dtype, width, hidden.device, run, measure)
    return best


class _Chunk:
    """The sweep of up to TOKENS tokens."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        direction: bool,
        entropy_direction: bool,
    ) -> None:
        self.hidden, self.weight, self.targets, self.scale = hidden, weight, targets, scale
        self.tokens, self.device = len(hidden), hidden.device
        kind = "weighted" if entropy_direction else "numerators" if direction else "logits"
        self.config = config(kind, hidden.dtype, hidden.shape[1], hidden.device)
        self.top = self._floats(fill=-torch.inf)
        self.total, self.weighted, self.kept, self.kept_weighted = (self._floats(dtype=torch.float64) for _ in range(4))
        self.at_target, self.carry = self._floats(), self._floats()
        self.mean = self._floats(hidden.shape[1]) if direction else None
        self.weighted_mean = self._floats(hidden.shape[1]) if entropy_direction else None

    def run(self) -> Sweep:
        if self.tokens:
            # Without numerators to keep, the whole vocabulary is one chunk.
            step = VOCABULARY if self.mean is not None else len(self.weight)
            for columns in _slices(len(self.weight), step):
                self._take(columns)
        if self.mean is not None and self.tokens:
            self._finish()
        scale, top = self.scale.double(), self.top.double()
        maximum = top * scale
        # Sums are relative to the shift, `rest` above the maximum: the same arithmetic as in the kernels.
        rest = (maximum - (maximum * kernels.LOG2_E.value).ceil() * kernels.LN_2.value).clamp(-1.0, 0.0)
        log_total = self.total.log()
        return Sweep(
            ((self.at_target.double() - top) * scale + rest - log_total).float(),
            (log_total - self.weighted / self.total).float(),
            self.top,
            (log_total - rest).float(),
            self.mean,
            self.weighted_mean,
        )

    def multiply(self, columns: slice, c: Config) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Numerators e and e x of a chunk of the vocabulary (empty where nobody needs them) and, each [tiles, tokens],
        the tiles' largest products, sums of e, of e x, and of both as they are kept (where they are). Changes nothing
        but `at_target`."""
        size = columns.stop - columns.start
        keep, keep_weighted = self.mean is not None, self.weighted_mean is not None
        shape = (triton.cdiv(size, c.columns), self.tokens)
        tops, totals, weighted = (torch.empty(shape, device=self.device) for _ in range(3))
        kept = torch.empty_like(totals) if keep else totals
        kept_weighted = torch.empty_like(weighted) if keep_weighted else weighted
        shares, weighted_shares = (
            torch.empty(self.tokens, size if wanted else 0, device=self.device, dtype=self.weight.dtype)
            for wanted in (keep, keep_weighted)
        )
        kernels.logits[_grid(self.tokens, size, c)](
            self.hidden, self.weight, self.targets, self.scale, shares, weighted_shares, tops, totals, weighted,
            kept, kept_weighted, self.at_target, self.tokens, len(self.weight), columns.start, columns.stop,
            self.hidden.shape[1], self.hidden.stride(0), self.weight.stride(0), size,
            ROWS=c.rows, COLUMNS=c.columns, INNER=c.inner, GROUP=BAND, KEEP=keep, KEEP_WEIGHTED=keep_weighted,
            UPCAST=_upcast(self.hidden), num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
        return shares, weighted_shares, (tops, totals, weighted, kept, kept_weighted)

    def _take(self, columns: slice) -> None:
        """One chunk of the vocabulary: numerators and statistics, then the sums."""
        c = self.config
        shares, weighted_shares, statistics = self.multiply(columns, c)
        kernels.merge[(triton.cdiv(self.tokens, 128),)](
            *statistics, self.scale, self.top, self.total, self.weighted, self.kept, self.kept_weighted, self.carry,
            self.tokens, len(statistics[0]), KEEP=self.mean is not None, BLOCK=128,
        )  # fmt: skip
        drops = statistics[0]  # which `merge` left where the largest products stood
        rows = self.weight[columns]
        if self.weighted_mean is not None:  # before the plain sum, whose old value it needs
            _accumulate(weighted_shares, rows, self.weighted_mean, drops, self.carry, c.columns, shares, self.mean)
        if self.mean is not None:
            _accumulate(shares, rows, self.mean, drops, self.carry, c.columns)

    def _finish(self) -> None:
        width, deviation = self.hidden.shape[1], self.kept_weighted / self.kept
        block = min(1024, triton.next_power_of_2(width))
        kernels.finish[(self.tokens, triton.cdiv(width, block))](
            self.weight, self.targets, self.scale, self.kept.float(), deviation.float(), self.mean,
            self.mean if self.weighted_mean is None else self.weighted_mean, width, self.weight.stride(0),
            WEIGHTED=self.weighted_mean is not None, BLOCK=block,
        )  # fmt: skip

    def _floats(self, *shape: int, fill: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((self.tokens, *shape), fill, dtype=dtype, device=self.device)


def _accumulate(
    left: Tensor,
    right: Tensor,
    sums: Tensor,
    drops: Tensor | None = None,
    carry: Tensor | None = None,
    span: int = 1,
    extra_left: Tensor | None = None,
    extra_sums: Tensor | None = None,
) -> None:
    """sums += left right, in place; the shifts and the weighted form as in the kernel."""
    kind = "accumulate" if extra_left is None else "accumulate weighted"
    c = config(kind, right.dtype, right.shape[1], right.device)
    if drops is not None and span % c.inner:
        raise ValueError(f"a step of {c.inner} columns would cross tiles of {span}")
    kernels.accumulate[_grid(len(left), right.shape[1], c)](
        left, right, sums,
        left if extra_left is None else extra_left, sums if extra_sums is None else extra_sums,
        sums if drops is None else drops, sums if carry is None else carry,
        len(left), right.shape[1], left.shape[1], left.stride(0), left.stride(1), right.stride(0),
        SPAN=span, SHIFTED=drops is not None, WEIGHTED=extra_left is not None,
        ROWS=c.rows, COLUMNS=c.columns, INNER=c.inner, GROUP=BAND, UPCAST=_upcast(right),
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip


def _coefficients(hidden: Tensor, weight: Tensor, per_token: list[Tensor], columns: slice) -> Tensor:
    size, c = columns.stop - columns.start, config("numerators", hidden.dtype, hidden.shape[1], hidden.device)
    out = torch.empty(len(hidden), size, device=hidden.device, dtype=hidden.dtype)
    if len(hidden):
        kernels.coefficients[_grid(len(hidden), size, c)](
            hidden, weight, *per_token, out, len(hidden), len(weight), columns.start, columns.stop, hidden.shape[1],
            hidden.stride(0), weight.stride(0), size,
            ROWS=c.rows, COLUMNS=c.columns, INNER=c.inner, GROUP=BAND, UPCAST=_upcast(hidden),
            num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
    return out


def _grid(rows: int, columns: int, c: Config) -> tuple[int]:
    return (max(1, triton.cdiv(rows, c.rows) * triton.cdiv(columns, c.columns)),)


def _upcast(tensor: Tensor) -> bool:
    return dispatch.interpreting() and tensor.dtype is not torch.float32


def _rows(matrix: Tensor) -> Tensor:
    """The kernels read rows whose elements are neighbours."""
    matrix = matrix.detach()
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, max(total, 1), step)]
