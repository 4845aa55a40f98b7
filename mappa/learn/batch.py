"""From samples to what the passes need: micro-batches, advantages, and the part that has a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec import Struct
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa.learn import ranks
from mappa.learn.loss import LossBatch
from mappa.learn.packing import pack, padding
from mappa.learn.passes import Policy, Prepared
from mappa.learn.samples import action_tokens, only
from mappa.types import Sample
from mappa_kernels import process_advantage
from mappa_kernels.advantage import SMALLEST_STD


class Part(Struct, frozen=True, kw_only=True):
    """A sample as it enters the loss, with a number per action token of each kind."""

    index: int
    """Of the sample among those of the step."""
    sample: Sample
    advantage: torch.Tensor
    kl: torch.Tensor
    old: torch.Tensor | None


def prepare(samples: Sequence[Sample], config: LearnConfig, policy: Policy) -> list[Prepared]:
    """Micro-batches of this rank's samples. Raises LearnError for an action that does not fit."""
    batches = pack(samples, config.roles, config.tokens_per_micro_batch)
    return [Prepared(batch, [action_tokens(samples[i]) for i in batch.samples], policy) for batch in batches]


def in_step(prepared: Sequence[Prepared], policy: Policy) -> list[Prepared]:
    """The micro-batches, and where the ranks share out the base, empty ones up to the number of the busiest rank: every
    pass gathers weights from all of them."""
    if not policy.config.shard_base:
        return list(prepared)
    lacking = ranks.maximum(len(prepared)) - len(prepared)
    none = replace(padding(policy.config.roles), samples=(), pick=torch.empty(0, dtype=torch.int64))
    return [*prepared, *(Prepared(none, (), policy) for _ in range(lacking))]


def advantages_of(samples: Sequence[Sample], kl: Sequence[torch.Tensor], config: LearnConfig) -> list[torch.Tensor]:
    """Per sample, the advantage of each action token, normalised over the groups of all ranks (collective); of a
    supervised one, its weights."""
    sampled = [index for index, sample in enumerate(samples) if not sample.supervised]
    found = iter(_advantages([samples[i] for i in sampled], [kl[i] for i in sampled], config))
    return [_weights(sample) if sample.supervised else next(found) for sample in samples]


def _weights(sample: Sample) -> torch.Tensor:
    lengths = torch.tensor([end - start for start, end in sample.spans])
    return torch.tensor(sample.advantages, dtype=torch.float32).repeat_interleave(lengths)


def _advantages(samples: Sequence[Sample], kl: Sequence[torch.Tensor], config: LearnConfig) -> list[torch.Tensor]:
    given = [sample for sample in samples if sample.advantages is not None]
    mixed = LearnError("some samples give advantages and some rewards; give one or the other for the whole step")
    ranks.raise_together(mixed if given and len(given) != len(samples) else None)
    kinds = ranks.total([len(given), len(samples) - len(given)])
    ranks.raise_together(mixed if all(kinds) else None)
    lengths = [end - start for sample in samples for start, end in sample.spans]
    sizes = [action_tokens(sample) for sample in samples]
    if kinds[0]:
        values = torch.tensor([a for sample in given for a in sample.advantages or ()], dtype=torch.float32)
        advantage = torch.nan_to_num(values.repeat_interleave(torch.tensor(lengths, dtype=torch.int64)), nan=0.0)
        return list(advantage.split(sizes))
    names = ranks.union([(sample.role, sample.group) for sample in samples])
    groups = [names.index((sample.role, sample.group)) for sample in samples for _ in sample.spans]
    if config.group_by == "all":
        groups, names = [0] * len(groups), names[:1]
    where = ranks.exchange_device()
    scores = torch.tensor([r for sample in samples for r in sample.rewards], dtype=torch.float32, device=where)
    members = torch.tensor(groups, dtype=torch.int64, device=where)
    compared, stats = _compare(scores, members, max(1, len(names)), whiten=config.advantage == "grpo")
    whiten = config.whiten and config.advantage == "reinforce++"
    advantage, returns = process_advantage(
        scores if config.advantage == "reinforce++" else compared,
        torch.tensor([0, *lengths], device=where).cumsum(0),
        members,
        kl=torch.cat([*kl, torch.empty(0)]).to(where),
        beta=config.beta,
        whiten=whiten,
        n_groups=max(1, len(names)),
        process_group=ranks.group(),
    )
    if whiten:
        # Where all scores are equal, only the KL tells returns apart: it keeps its own size.
        keep = torch.where(_std(stats) < SMALLEST_STD, _std(returns).clamp(min=SMALLEST_STD), 1.0).float()
        advantage *= keep[members].repeat_interleave(torch.tensor(lengths, device=where, dtype=torch.int64))
    return list(advantage.cpu().split(sizes))


def _compare(
    scores: torch.Tensor, groups: torch.Tensor, n_groups: int, *, whiten: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [A] against the other actions of their group on all ranks (collective), every action counting once however
    long it is; and the groups' statistics [n_groups, 3], as `process_advantage` has them.

    With `whiten` (s - mean) / std, std over n: GRPO (Shao et al. 2024, 2402.03300, eq. 3). Without, s - mean of the
    others, which is (s - mean) n / (n - 1), and 0 where there is none: RLOO (Ahmadian et al. 2024, 2402.14740, eq. 7).
    """
    each = torch.arange(len(scores) + 1, device=scores.device)
    found, stats = process_advantage(
        scores, each, groups, whiten=whiten, n_groups=n_groups, process_group=ranks.group()
    )
    if not whiten:
        count, mean, _ = stats[groups].unbind(1)
        found = ((scores - mean) * count / (count - 1).clamp(min=1)).float()
    return torch.where(scores.isnan(), scores, found), stats


def _std(stats: torch.Tensor) -> torch.Tensor:
    """Of each group, [n_groups]; 0 where it is empty."""
    count, _, squares = stats.unbind(1)
    return (squares / count.clamp(min=1)).sqrt()


def live(
    samples: Sequence[Sample],
    advantages: Sequence[torch.Tensor],
    kl: Sequence[torch.Tensor],
    old: Sequence[torch.Tensor] | None,
) -> list[Part]:
    """What has a gradient: samples without the actions whose every advantage is 0; a sample with none is left out."""
    parts = []
    for index, sample in enumerate(samples):
        lengths = [end - start for start, end in sample.spans]
        keep = [bool(piece.any()) for piece in advantages[index].split(lengths)]
        tokens = torch.tensor(keep).repeat_interleave(torch.tensor(lengths))
        if not any(keep):
            continue
        before = None if old is None else old[index][tokens]
        parts.append(
            Part(
                index=index,
                sample=only(sample, keep),
                advantage=advantages[index][tokens],
                kl=kl[index][tokens],
                old=before,
            )
        )
    return parts


def loss_batch(item: Prepared, parts: Sequence[Part], config: LearnConfig) -> LossBatch:
    """What the loss of a micro-batch of `parts` needs, but for the entropy, which the pass will tell."""
    device = item.batch.ids.device
    mine = [parts[index] for index in item.batch.samples]
    roles = [config.roles.index(part.sample.role) for part in mine]
    lengths = [end - start for part in mine for start, end in part.sample.spans]
    old = [part.old for part in mine if part.old is not None]
    return LossBatch(
        behaviour=torch.tensor(
            [value for part in mine for value in part.sample.logprobs], dtype=torch.float32, device=device
        ),
        advantage=torch.cat([part.advantage for part in mine]).to(device),
        kl=torch.cat([part.kl for part in mine]).to(device),
        entropy=torch.empty(0, device=device),
        old=torch.cat(old).to(device) if old else None,
        roles=torch.tensor(roles, device=device).repeat_interleave(torch.tensor(item.sizes, device=device)),
        offsets=torch.tensor([0, *lengths], device=device).cumsum(0),
    )
