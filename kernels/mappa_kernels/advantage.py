"""From one score per action to one whitened advantage per token.

    r_t = -beta * kl_t,  plus the action's score at its last token
    A_t = sum over j >= t within the action of gamma^(j - t) r_j
    advantage_t = (A_t - mean) / std,  over all tokens of the action's group on all ranks

The statistics are taken per action, (n, mean, M2) in fp64, and merged by Chan's rule in an order that depends on
their values alone. So the result has the same bits however the actions are ordered, packed or spread over ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mappa_kernels import checks, dispatch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SCORE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SMALLEST_STD = 1e-6
"""Returns that spread less than this are equal but for rounding, beta times that of log-probs: whitened, they stay
small, rather than become noise of unit size."""


def process_advantage(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    *,
    kl: Tensor | None = None,
    beta: float = 0.0,
    gamma: float = 1.0,
    whiten: bool = True,
    n_groups: int | None = None,
    process_group: ProcessGroup | None = None,
    backend: dispatch.Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Whitened returns of T packed action tokens, and the statistics they were whitened with.

    scores [A], NaN where the coach gave none (those tokens get 0 and stay out of the statistics); action_offsets
    [A + 1], ascending from 0 to T: action a owns tokens [action_offsets[a], action_offsets[a + 1]); groups [A] in
    [0, n_groups); kl [T], per-token log-ratio to the reference policy, within fp32's range.

    Returns advantage fp32 [T] and stats fp64 [n_groups, 3]: tokens n, their mean return, and M2, the sum of squared
    deviations; the variance is M2 / n. With `process_group` the statistics span its ranks (every rank must call).

    Raises ValueError naming the argument, BackendError where `backend` cannot run.
    """
    beta, gamma, n_groups = _check(scores, action_offsets, groups, kl, beta, gamma, n_groups)
    name = dispatch.choose(backend, "process_advantage", scores.device, torch.float32)
    run = {"cpu": _on_cpu, "triton": _on_gpu, "reference": _eager}[name]
    if n_groups is None:
        n_groups = _count_groups(groups, process_group)
    return run(scores, action_offsets, groups, kl, beta, gamma, whiten, n_groups, process_group)


def process_advantage_reference(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    *,
    kl: Tensor | None = None,
    beta: float = 0.0,
    gamma: float = 1.0,
    whiten: bool = True,
    n_groups: int | None = None,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """`process_advantage` in plain torch, on any device with fp64."""
    beta, gamma, n_groups = _check(scores, action_offsets, groups, kl, beta, gamma, n_groups)
    if n_groups is None:
        n_groups = _count_groups(groups, process_group)
    return _eager(scores, action_offsets, groups, kl, beta, gamma, whiten, n_groups, process_group)


def _eager(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    kl: Tensor | None,
    beta: float,
    gamma: float,
    whiten: bool,
    n_groups: int,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    tokens = _check_values(scores, action_offsets, groups, kl, n_groups)
    returns, actions, action_of = _returns(scores, action_offsets, kl, beta, gamma, tokens)
    stats = _merge(_gather(actions, groups, process_group), n_groups)
    return _finish(returns, stats, groups, action_of, whiten), stats


def _on_cpu(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    kl: Tensor | None,
    beta: float,
    gamma: float,
    whiten: bool,
    n_groups: int,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """One pass for the returns and their statistics, one to whiten (csrc/advantage.cpp)."""
    from mappa_kernels.cpu import extension

    core, offsets, members = extension(), action_offsets.long().contiguous(), groups.long().contiguous()
    values, ratios = scores.detach().double().contiguous(), None
    if kl is not None:
        ratios = kl.detach().float().contiguous()
    if not core.sound(values, offsets, members, ratios, n_groups):
        _check_values(scores, action_offsets, groups, kl, n_groups)  # which says what is wrong
    if beta == 0.0:
        ratios = None
    if whiten and process_group is None:
        whole: tuple[Tensor, Tensor] = core.advantages(
            values, offsets, members, ratios, beta, gamma, n_groups, SMALLEST_STD
        )
        return whole
    returns, actions = core.action_returns(values, offsets, ratios, beta, gamma)
    stats = core.merge_statistics(_gather(actions, groups, process_group), n_groups)
    if not whiten:
        return returns.nan_to_num(nan=0.0).float(), stats
    return core.whiten(returns, offsets, members, stats, SMALLEST_STD), stats


def _on_gpu(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    kl: Tensor | None,
    beta: float,
    gamma: float,
    whiten: bool,
    n_groups: int,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """A program per action for the returns and their statistics, and to whiten (gpu/advantage.py)."""
    from mappa_kernels.gpu import advantage as gpu

    tokens = _check_values(scores, action_offsets, groups, kl, n_groups)
    offsets, ratios = action_offsets.contiguous(), None if beta == 0.0 else kl
    returns, actions = gpu.action_returns(scores, offsets, ratios, beta, gamma, tokens)
    stats = _merge(_gather(actions, groups, process_group), n_groups)
    return gpu.whiten(returns, offsets, groups, stats, SMALLEST_STD, whiten=whiten), stats


def _check(
    scores: Tensor,
    action_offsets: Tensor,
    groups: Tensor,
    kl: Tensor | None,
    beta: object,
    gamma: object,
    n_groups: object,
) -> tuple[float, float, int | None]:
    """Refuse wrong types, shapes, devices and options; returns beta, gamma and n_groups as plain numbers.

    Reads no value of the tensors and waits for no device.
    """
    device = scores.device if isinstance(scores, Tensor) else torch.device("cpu")
    checks.tensor("scores", scores, 1, SCORE_TYPES, device)
    checks.tensor("action_offsets", action_offsets, 1, checks.INDEX_TYPES, device)
    checks.entries("action_offsets", action_offsets, len(scores) + 1)
    checks.tensor("groups", groups, 1, checks.INDEX_TYPES, device)
    checks.length("groups", groups, len(scores), "action")
    if kl is not None:
        checks.tensor("kl", kl, 1, SCORE_TYPES, device)
    weight, discount = checks.finite("beta", beta), checks.number("gamma", gamma)
    checks.require(weight == 0.0 or kl is not None, "kl", f"is needed with beta={weight}")
    checks.require(0.0 <= discount <= 1.0, "gamma", f"must be in [0, 1], is {discount}")
    return weight, discount, None if n_groups is None else checks.count("n_groups", n_groups)


def _check_values(scores: Tensor, action_offsets: Tensor, groups: Tensor, kl: Tensor | None, n_groups: int) -> int:
    """Refuse values that cannot be computed with; returns the number of tokens."""
    checks.require(not _infinite(scores), "scores", "holds an infinite value; a missing score is NaN")
    # In fp32, as the C++ kernel reads it: what is beyond would be infinite there.
    checks.require(kl is None or _finite(kl.detach().float()), "kl", "holds a NaN, or a value that fp32 cannot hold")
    checks.offsets("action_offsets", action_offsets, len(scores), None if kl is None else len(kl))
    checks.within("groups", groups, 0, n_groups)
    return int(action_offsets[-1])


def _infinite(scores: Tensor) -> bool:
    # A missing score is a NaN and passes; it would hide an infinity from a plain sum.
    return not _finite(scores.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf))


def _finite(values: Tensor) -> bool:
    # One NaN or infinity makes the sum non-finite, and the sum is far cheaper than the test of every value.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _count_groups(groups: Tensor, process_group: ProcessGroup | None) -> int:
    count = groups.max() + 1 if groups.numel() else groups.new_zeros(())
    if process_group is not None:
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX, group=process_group)
    return int(count)


def _returns(
    scores: Tensor, action_offsets: Tensor, kl: Tensor | None, beta: float, gamma: float, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 [T] returns (NaN where unscored), [A, 3] their (n, mean, M2) by action, and [T] the action of each token."""
    lengths = action_offsets.diff()
    action_of = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), lengths, output_size=tokens)
    returns = scores.new_zeros(tokens, dtype=torch.float64)
    if kl is not None:
        returns -= beta * kl.detach().double()
    ends = action_offsets[1:][action_of]
    position = torch.arange(tokens, device=scores.device)
    returns += torch.where(position == ends - 1, scores.detach().double()[action_of], 0.0)
    # A scan by doubling: after round k every token holds the discounted sum of its next 2^k tokens.
    step = 1
    while step < int(lengths.max() if len(lengths) else 0):
        ahead = torch.where(position[:-step] + step < ends[:-step], returns[step:], 0.0)
        returns[:-step] += gamma**step * ahead
        step *= 2
    returns = torch.where(scores.isnan()[action_of], torch.nan, returns)
    return returns, _by_action(returns, action_offsets, action_of), action_of


def _by_action(returns: Tensor, action_offsets: Tensor, action_of: Tensor) -> Tensor:
    """(n, mean, M2) of each action's returns, [A, 3]; zeros where it has no token or no score."""
    count = action_offsets.diff().double()
    mean = _segment_sum(returns, action_offsets) / count
    squares = _segment_sum((returns - mean[action_of]).square(), action_offsets)
    stats = torch.stack((count, mean, squares), dim=1)
    return torch.where(mean.isnan()[:, None], 0.0, stats)


def _segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    if not len(values):
        return values.new_zeros(len(offsets) - 1)
    return torch.segment_reduce(values, "sum", offsets=offsets.long(), initial=0.0)


def _gather(actions: Tensor, groups: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """[all actions of all ranks, 4]: group, n, mean, M2."""
    rows = torch.cat((groups.double()[:, None], actions), dim=1)
    if process_group is not None:
        world = torch.distributed.get_world_size(process_group)
        count = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.empty_like(count) for _ in range(world)]
        torch.distributed.all_gather(counts, count, group=process_group)
        sizes = [int(size) for size in counts]
        padded = rows.new_zeros(max(sizes), 4)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(world)]
        torch.distributed.all_gather(parts, padded, group=process_group)
        rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows


def _merge(rows: Tensor, n_groups: int) -> Tensor:
    """Chan's rule over any number of parts at once: M2 = sum of M2_i + n_i (mean_i - mean)^2. [n_groups, 3].

    The parts are sorted first, so that the sums do not depend on the order they came in.
    """
    for column in (3, 2, 1, 0):
        rows = rows[torch.argsort(rows[:, column], stable=True)]
    group, count, mean, squares = rows.unbind(1)
    member = (group[None, :] == torch.arange(n_groups, device=rows.device)[:, None]).double()
    total = member @ count
    centre = torch.where(total > 0, member @ (count * mean) / total, 0.0)
    spread = count[None, :] * (mean[None, :] - centre[:, None]).square()
    return torch.stack((total, centre, member @ squares + (member * spread).sum(1)), dim=1)


def _finish(returns: Tensor, stats: Tensor, groups: Tensor, action_of: Tensor, whiten: bool) -> Tensor:
    """fp32 [T]; 0 where there is no score."""
    if whiten:
        count, mean, squares = stats[groups[action_of]].unbind(1)
        returns = (returns - mean) / (squares / count).sqrt().clamp(min=SMALLEST_STD)
    return torch.where(returns.isnan(), 0.0, returns).float()
