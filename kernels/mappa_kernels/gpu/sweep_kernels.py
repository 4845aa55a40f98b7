# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Kernels of the vocabulary sweep.

A chunk of tokens meets a chunk of the vocabulary. `logits` multiplies them tile by tile and leaves, of every tile,
its softmax numerators e in the weight's type and its statistics, both relative to a shift of the tile's own: no
program waits for another. `merge` brings the tiles' statistics together, in their order. `accumulate` adds e W.

With z = scale hidden . weight and m the largest z of a tile, e = exp(x) and x = z - shift ln 2 = (z - m) + (m - shift
ln 2): the first difference is exact in fp32 where it matters, the second is taken in fp64, once per token. So large
logits cost no accuracy.

Shifts are whole powers of two, so bringing one tile's numerators to another's shift is exact in any float type: bf16
numerators are rounded once. The sums of e W are divided by the sum of the numerators as they were rounded: over that of
e itself, the rounding of a likely token's e would stay in its weight, and outgrow the gradient of a confident model.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr):
    """acc + a b. UPCAST: the interpreter multiplies bf16 wrongly."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def tile_of(program, rows, columns, GROUP: tl.constexpr):
    """(row tile, column tile) of a program; neighbours share a band of GROUP rows, so that the cache serves them."""
    band = GROUP * columns
    first = program // band * GROUP
    height = min(rows - first, GROUP)
    inside = program % band
    return first + inside % height, inside // height


@triton.jit
def logits_of(
    hidden, weight, t, v, tokens, vocabulary, width, stride_h, stride_w,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """hidden[t] . weight[v], fp32 [ROWS, COLUMNS]."""
    k = tl.arange(0, INNER)
    h_at = hidden + t[:, None].to(tl.int64) * stride_h + k[None, :]
    w_at = weight + v[:, None].to(tl.int64) * stride_w + k[None, :]
    t_in, v_in = t[:, None] < tokens, v[:, None] < vocabulary
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, INNER):
        k_in = k[None, :] < width - first
        a = tl.load(h_at, mask=t_in & k_in, other=0.0)
        b = tl.load(w_at, mask=v_in & k_in, other=0.0)
        acc = dot(a, tl.trans(b), acc, UPCAST)
        h_at += INNER
        w_at += INNER
    return acc


@triton.jit
def shift_of(top, scale):
    """(shift, m - shift ln 2 in (-ln 2, 0]) for the largest product of a tile or of all, m = top scale; fp64, fp32."""
    m = tl.maximum(top, -1e38).to(tl.float64) * scale.to(tl.float64)  # finite for a row of nothing but -inf
    shift = tl.ceil(m * LOG2_E)
    # Beyond 2^50 even fp64 knows the difference no better than to a whole number: nothing to exponentiate.
    rest = tl.minimum(tl.maximum(m - shift * LN_2, -1.0), 0.0)
    return shift, rest.to(tl.float32)


@triton.jit
def between(shift, other):
    """shift - other, fp32 and finite."""
    return tl.maximum(shift - other, -1e30).to(tl.float32)


@triton.jit
def logits(
    hidden, weight, targets, scale, shares, weighted_shares, tops, totals, weighted, kept, kept_weighted, at_target,
    tokens, vocabulary, first, last, width, stride_h, stride_w, stride_s,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,
    KEEP: tl.constexpr, KEEP_WEIGHTED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Vocabulary rows [first, last) for every token of the chunk.

    shares, weighted_shares [tokens, last - first]: e and e x (kept only if asked for). tops, totals, weighted [tiles,
    tokens]: per tile the largest product, sum e, sum e x; kept, kept_weighted: the sums of what `shares` and
    `weighted_shares` hold. at_target [tokens]: the target's product, written by the one tile that holds it.
    """
    row_tiles, column_tiles = tl.cdiv(tokens, ROWS), tl.cdiv(last - first, COLUMNS)
    row, column = tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    t = row * ROWS + tl.arange(0, ROWS)
    tile_first = first + column * COLUMNS
    v = tile_first + tl.arange(0, COLUMNS)
    t_in = t < tokens
    acc = logits_of(
        hidden, weight, t, v, tokens, vocabulary, width, stride_h, stride_w, ROWS, COLUMNS, INNER, UPCAST
    )  # fmt: skip
    acc = tl.where(v[None, :] < last, acc, float("-inf"))
    factor = tl.load(scale + t, mask=t_in, other=1.0)
    top = tl.maximum(tl.max(acc, 1), -1e38)
    _, rest = shift_of(top, factor)
    x = (acc - top[:, None]) * factor[:, None] + rest[:, None]
    e = tl.exp2(x * LOG2_E)
    ex = e * tl.where(e > 0, x, 0.0)

    at = column.to(tl.int64) * tokens + t
    tl.store(tops + at, top, mask=t_in)
    tl.store(totals + at, tl.sum(e, 1), mask=t_in)
    tl.store(weighted + at, tl.sum(ex, 1), mask=t_in)
    y = tl.load(targets + t, mask=t_in, other=-1)
    hit = v[None, :] == y[:, None]
    here = (y >= tile_first) & (y < tile_first + COLUMNS) & (y < last)
    tl.store(at_target + t, tl.sum(tl.where(hit, acc, 0.0), 1), mask=t_in & here)
    if KEEP:
        place = t[:, None].to(tl.int64) * stride_s + (v - first)[None, :]
        inside = t_in[:, None] & (v[None, :] < last)
        rounded = e.to(shares.dtype.element_ty)
        tl.store(shares + place, rounded, mask=inside)
        tl.store(kept + at, tl.sum(rounded.to(tl.float32), 1), mask=t_in)
        if KEEP_WEIGHTED:
            rounded = ex.to(shares.dtype.element_ty)
            tl.store(weighted_shares + place, rounded, mask=inside)
            tl.store(kept_weighted + at, tl.sum(rounded.to(tl.float32), 1), mask=t_in)


@triton.jit
def carried(total_state, weighted_state, t, t_in, drop):
    """Running sums of e and e x, brought to a shift that lies `drop` lower than theirs, fp64."""
    total = tl.load(total_state + t, mask=t_in, other=0.0)
    sums = tl.load(weighted_state + t, mask=t_in, other=0.0)
    factor = tl.exp2(drop).to(tl.float64)
    return total * factor, (sums + drop.to(tl.float64) * LN_2 * total) * factor


@triton.jit
def added(total, sums, totals, weighted, at, t_in, drop):
    """(total, sums) and those of one tile, whose shift lies `drop` lower."""
    share = tl.load(totals + at, mask=t_in, other=0.0).to(tl.float64)
    part = tl.load(weighted + at, mask=t_in, other=0.0).to(tl.float64)
    power = tl.exp2(drop).to(tl.float64)
    return total + share * power, sums + (part + drop.to(tl.float64) * LN_2 * share) * power


@triton.jit
def merge(
    tops, totals, weighted, kept, kept_weighted, scale, top_state, total_state, weighted_state, kept_state,
    kept_weighted_state, carry, tokens, tiles,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take a chunk's tiles into the running statistics, tile after tile; KEEP: the sums of what was kept too.

    The state is relative to the shift of top_state; `carry` receives old shift - new shift, and `tops`, in place, each
    tile's shift - new.
    """
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    t_in = t < tokens
    factor = tl.load(scale + t, mask=t_in, other=1.0)
    old_top = tl.load(top_state + t, mask=t_in, other=0.0)
    top = old_top
    for tile in range(tiles):
        top = tl.maximum(top, tl.load(tops + tile * tokens + t, mask=t_in, other=float("-inf")))
    old, _ = shift_of(old_top, factor)
    new, _ = shift_of(top, factor)
    drop = between(old, new)
    total, sums = carried(total_state, weighted_state, t, t_in, drop)
    if KEEP:
        kept_total, kept_sums = carried(kept_state, kept_weighted_state, t, t_in, drop)
    for tile in range(tiles):
        at = tile * tokens + t
        shift, _ = shift_of(tl.load(tops + at, mask=t_in, other=0.0), factor)
        below = between(shift, new)
        total, sums = added(total, sums, totals, weighted, at, t_in, below)
        if KEEP:
            kept_total, kept_sums = added(kept_total, kept_sums, kept, kept_weighted, at, t_in, below)
        tl.store(tops + at, below, mask=t_in)
    tl.store(top_state + t, top, mask=t_in)
    tl.store(total_state + t, total, mask=t_in)
    tl.store(weighted_state + t, sums, mask=t_in)
    if KEEP:
        tl.store(kept_state + t, kept_total, mask=t_in)
        tl.store(kept_weighted_state + t, kept_sums, mask=t_in)
    tl.store(carry + t, drop, mask=t_in)


@triton.jit
def accumulate(
    left, right, sums, extra_left, extra_sums, drops, carry, rows, columns, depth, stride_lr, stride_ld, stride_r,
    SPAN: tl.constexpr, SHIFTED: tl.constexpr, WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """sums [rows, columns] += left [rows, depth] right [depth, columns].

    SHIFTED: `left` is numerators in tiles of SPAN columns, each 2^drops[tile, row] from the running shift, and the
    old sums are 2^carry[row] from it. WEIGHTED: `left` is e x and `extra_left` e: what is added is
    (e x + drop ln 2 e) W, and the old sums gain carry ln 2 times `extra_sums`, the sum of e W before this chunk.
    """
    row, column = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS), GROUP)
    r = row * ROWS + tl.arange(0, ROWS)
    c = column * COLUMNS + tl.arange(0, COLUMNS)
    d = tl.arange(0, INNER)
    r_in, c_in = r < rows, c < columns
    left_place = r[:, None].to(tl.int64) * stride_lr + d[None, :] * stride_ld
    right_at = right + d[:, None].to(tl.int64) * stride_r + c[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, depth, INNER):
        d_in = d < depth - first
        a = tl.load(left + left_place, mask=r_in[:, None] & d_in[None, :], other=0.0)
        b = tl.load(right_at, mask=d_in[:, None] & c_in[None, :], other=0.0)
        if SHIFTED:
            drop = tl.load(drops + first // SPAN * rows + r, mask=r_in, other=0.0)[:, None]
            value = a.to(tl.float32)
            if WEIGHTED:
                e = tl.load(extra_left + left_place, mask=r_in[:, None] & d_in[None, :], other=0.0)
                value += drop * LN_2 * e.to(tl.float32)
            a = (value * tl.exp2(drop)).to(a.dtype)
        acc = dot(a, b, acc, UPCAST)
        left_place += INNER * stride_ld
        right_at += INNER * stride_r
    place = r[:, None].to(tl.int64) * columns + c[None, :]
    inside = r_in[:, None] & c_in[None, :]
    old = tl.load(sums + place, mask=inside, other=0.0)
    if SHIFTED:
        drop = tl.load(carry + r, mask=r_in, other=0.0)[:, None]
        if WEIGHTED:
            old += drop * LN_2 * tl.load(extra_sums + place, mask=inside, other=0.0)
        old *= tl.exp2(drop)
    tl.store(sums + place, old + acc, mask=inside)


@triton.jit
def finish(
    weight, targets, scale, total, deviation, mean, weighted, width, stride_w,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of e W become directions, in place: (W[y] - mean) scale, and -(weighted - deviation mean) scale.

    total, deviation [tokens]: the sum of e as the product took it, and the mean of x under it.
    """
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < width
    share = 1.0 / tl.load(total + t)
    factor = tl.load(scale + t)
    expected = tl.load(mean + t * width + k, mask=inside) * share
    row = tl.load(weight + tl.load(targets + t).to(tl.int64) * stride_w + k, mask=inside).to(tl.float32)
    tl.store(mean + t * width + k, (row - expected) * factor, mask=inside)
    if WEIGHTED:
        sums = tl.load(weighted + t * width + k, mask=inside) * share
        tl.store(weighted + t * width + k, (tl.load(deviation + t) * expected - sums) * factor, mask=inside)


@triton.jit
def coefficients(
    hidden, weight, targets, scale, top, log_total, entropy, grad_logprob, grad_entropy, out,
    tokens, vocabulary, first, last, width, stride_h, stride_w, stride_o,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out [tokens, last - first]: d loss / d (hidden . weight), from the gradients in log-prob and entropy.

    top, log_total [tokens]: the largest hidden . weight, and log of the sum of exp(z - top scale).
    """
    row_tiles, column_tiles = tl.cdiv(tokens, ROWS), tl.cdiv(last - first, COLUMNS)
    row, column = tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    t = row * ROWS + tl.arange(0, ROWS)
    v = first + column * COLUMNS + tl.arange(0, COLUMNS)
    t_in = t < tokens
    acc = logits_of(
        hidden, weight, t, v, tokens, vocabulary, width, stride_h, stride_w, ROWS, COLUMNS, INNER, UPCAST
    )  # fmt: skip
    factor = tl.load(scale + t, mask=t_in, other=1.0)[:, None]
    x = (acc - tl.load(top + t, mask=t_in, other=0.0)[:, None]) * factor
    log_p = tl.maximum(x - tl.load(log_total + t, mask=t_in, other=0.0)[:, None], -1e30)
    by_logprob = tl.load(grad_logprob + t, mask=t_in, other=0.0)[:, None]
    by_entropy = tl.load(grad_entropy + t, mask=t_in, other=0.0)[:, None]
    spread = log_p + tl.load(entropy + t, mask=t_in, other=0.0)[:, None]
    hit = v[None, :] == tl.load(targets + t, mask=t_in, other=-1)[:, None]
    value = tl.where(hit, by_logprob, 0.0) - tl.exp(log_p) * (by_logprob + by_entropy * spread)
    place = t[:, None].to(tl.int64) * stride_o + (v - first)[None, :]
    tl.store(out + place, (value * factor).to(out.dtype.element_ty), mask=t_in[:, None] & (v[None, :] < last))
