"""What the learner accepts: every sample is checked before any collective is entered, so that no rank hangs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from msgspec.structs import replace

from mappa.errors import LearnError
from mappa.types import Sample


def check_samples(samples: Sequence[Sample], roles: Sequence[str], vocabulary: int) -> None:
    """Raise LearnError naming the first sample that cannot be learned from, and what is wrong with it."""
    for index, sample in enumerate(samples):
        fault = _fault(sample, roles, vocabulary)
        if fault is not None:
            raise LearnError(f"sample {sample.source or index}: {fault}")


def learnable(sample: Sample, *, mask_truncated: bool) -> bool:
    """Whether anything of it enters the loss: an action has a score, and it was not cut off where that masks it."""
    return not (sample.truncated and mask_truncated) and any(_is_scored(sample))


def scored(sample: Sample) -> Sample:
    """The sample without its unscored actions, which then count in no mean."""
    return only(sample, _is_scored(sample))


def only(sample: Sample, keep: Sequence[bool]) -> Sample:
    """The sample with some of its actions no longer learned from; their tokens stay context. `keep`: by action."""
    if all(keep):
        return sample
    tokens = [wanted for (start, end), wanted in zip(sample.spans, keep, strict=True) for _ in range(start, end)]
    return replace(
        sample,
        spans=tuple(itertools.compress(sample.spans, keep)),
        logprobs=tuple(itertools.compress(sample.logprobs, tokens)),
        rewards=tuple(itertools.compress(sample.rewards, keep)),
        advantages=None if sample.advantages is None else tuple(itertools.compress(sample.advantages, keep)),
    )


def action_tokens(sample: Sample) -> int:
    return sum(end - start for start, end in sample.spans)


def _is_scored(sample: Sample) -> list[bool]:
    return [not math.isnan(score) for score in (sample.rewards if sample.advantages is None else sample.advantages)]


def _fault(sample: Sample, roles: Sequence[str], vocabulary: int) -> str | None:
    if sample.role not in roles:
        return f"role {sample.role!r} is not one of {', '.join(roles)}"
    if not sample.tokens or min(sample.tokens) < 0 or max(sample.tokens) >= vocabulary:
        return f"its tokens are empty or outside 0..{vocabulary - 1}"
    bounds = list(itertools.chain.from_iterable(sample.spans))
    if not sample.spans or bounds != sorted(bounds) or bounds[0] < 1 or bounds[-1] > len(sample.tokens):
        return f"its spans {sample.spans} must ascend without overlap inside 1..{len(sample.tokens)}"
    if any(start == end for start, end in sample.spans):
        return "a span of it is empty"
    tokens = action_tokens(sample)
    if sample.supervised:
        return _supervised_fault(sample)
    if len(sample.logprobs) != tokens:
        return f"{len(sample.logprobs)} behaviour log-probs for {tokens} action tokens"
    if not all(math.isfinite(value) for value in sample.logprobs):
        return "a behaviour log-prob of it is NaN or infinite"
    given = sample.rewards if sample.advantages is None else sample.advantages
    if len(given) != len(sample.spans):
        name = "rewards" if sample.advantages is None else "advantages"
        return f"{len(given)} {name} for {len(sample.spans)} spans"
    if sample.advantages is not None and sample.rewards and len(sample.rewards) != len(sample.spans):
        return f"{len(sample.rewards)} rewards for {len(sample.spans)} spans; its advantages replace them, give none"
    if any(math.isinf(value) for value in given):
        return "a reward or advantage of it is infinite; a missing one is NaN"
    return None


def _supervised_fault(sample: Sample) -> str | None:
    if sample.logprobs or sample.rewards:
        return "it is supervised, so it has no behaviour log-probs and no rewards"
    weights = sample.advantages or ()
    if len(weights) != len(sample.spans) or not all(math.isfinite(weight) for weight in weights):
        return f"it is supervised and gives {len(weights)} finite weights for {len(sample.spans)} spans"
    return None
