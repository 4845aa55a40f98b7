"""What the kernels are measured against: the common ways to compute the same, and other libraries' ways."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], object]


class Unavailable(Exception):
    """A peer that cannot run here, with the reason."""


@dataclass(frozen=True)
class Head:
    """One log-prob problem: a frozen head, and the gradient of the loss in each token's log-prob."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    gradient: Tensor

    @classmethod
    def random(cls, tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Head:
        """Logits of standard deviation 3, as a trained model's are."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(tokens, width, generator=generator)
        weight = torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5
        targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
        return cls(hidden.to(dtype), weight.to(dtype), targets, torch.randn(tokens, generator=generator))

    def part(self, tokens: int) -> Head:
        """The first `tokens` of it."""
        return Head(self.hidden[:tokens], self.weight, self.targets[:tokens], self.gradient[:tokens])

    def backward(self, logprob: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient in `hidden`, through a function from hidden states to log-probs."""
        hidden = self.hidden.detach().requires_grad_()
        logprob(hidden).backward(self.gradient)
        assert hidden.grad is not None
        return hidden.grad


def naive_forward(head: Head) -> tuple[Tensor, Tensor]:
    """log_softmax over all logits in fp32, then gather: log-prob and entropy."""
    with torch.no_grad():
        log_p = (head.hidden @ head.weight.T).float().log_softmax(-1)
        return log_p.gather(1, head.targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def naive_backward(head: Head) -> Tensor:
    """The same with autograd; the entropy is read, not differentiated."""

    def logprob(hidden: Tensor) -> Tensor:
        log_p = (hidden @ head.weight.T).float().log_softmax(-1)
        with torch.no_grad():
            -(log_p.exp() * log_p).sum(-1)
        return log_p.gather(1, head.targets[:, None]).squeeze(1)

    return head.backward(logprob)


def checkpointed(head: Head, chunk: int = 256) -> Tensor:
    """Token chunks whose logits are computed again in the backward: RLHF code's usual way to save memory."""

    def one(hidden: Tensor, targets: Tensor) -> Tensor:
        log_p = (hidden @ head.weight.T).float().log_softmax(-1)
        return log_p.gather(1, targets[:, None]).squeeze(1)

    def logprob(hidden: Tensor) -> Tensor:
        pairs = zip(hidden.split(chunk), head.targets.split(chunk), strict=True)
        return torch.cat([torch.utils.checkpoint.checkpoint(one, *pair, use_reentrant=False) for pair in pairs])

    import torch.utils.checkpoint

    return head.backward(logprob)


def torch_linear_cross_entropy(head: Head) -> Run:
    """torch's own chunked form. It knows no weight per token, so the loss is the plain sum."""
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if function is None or options is None:
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy with options")

    def run() -> Tensor:
        hidden = head.hidden.detach().requires_grad_()
        function(hidden, head.weight, head.targets, reduction="sum", options=options()).backward()
        assert hidden.grad is not None
        return hidden.grad

    return run


def cut_cross_entropy(head: Head) -> Run:
    """Cut cross-entropy's torch.compile form, the one that runs without a GPU."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"cut-cross-entropy is not installed ({error})") from None

    def logprob(hidden: Tensor) -> Tensor:
        loss = linear_cross_entropy(hidden, head.weight, head.targets, reduction="none", impl="torch_compile")
        return -loss.float()

    return _tried(lambda: head.backward(logprob))


def liger(head: Head) -> Run:
    """Liger's chunked log-prob, the piece of its fused losses that runs without a GPU."""
    try:
        from liger_kernel.chunked_loss import fused_linear_ppo
    except ImportError as error:
        raise Unavailable(f"liger-kernel is not installed ({error})") from None
    function = getattr(fused_linear_ppo, "_ChunkedSelectiveLogProbFunction", None)
    if function is None:
        raise Unavailable("this liger-kernel has no chunked log-prob; its fused losses need a GPU")
    size = fused_linear_ppo._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE

    def logprob(hidden: Tensor) -> Tensor:
        out: Tensor = function.apply(hidden, head.weight, head.targets, None, 1.0, size)
        return out

    return lambda: head.backward(logprob)


def _tried(run: Run) -> Run:
    """`run`, which reports why it cannot where it fails."""

    def tried() -> object:
        try:
            return run()
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways; the reason is reported
            raise Unavailable(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}") from None

    return tried


def loop_over_tokens(scores: Tensor, offsets: Tensor, groups: Tensor, kl: Tensor, beta: float, n_groups: int) -> Tensor:
    """Returns one token after the other, in Python; then whitened by group with masks."""
    returns = torch.zeros(int(offsets[-1]))
    rewards = -beta * kl
    rewards[offsets[1:] - 1] += scores
    bounds = offsets.tolist()
    for first, stop in itertools.pairwise(bounds):
        following = torch.zeros(())
        for t in range(stop - 1, first - 1, -1):
            following = rewards[t] + following
            returns[t] = following
    return _whitened(returns, torch.repeat_interleave(groups, offsets.diff()), n_groups)


def loop_over_steps(scores: Tensor, offsets: Tensor, groups: Tensor, kl: Tensor, beta: float, n_groups: int) -> Tensor:
    """Actions padded to [A, longest]; one Python step per column (the cumulative returns of common RLHF code)."""
    lengths = offsets.diff()
    longest = int(lengths.max())
    mask = torch.arange(longest)[None, :] >= longest - lengths[:, None]  # padded on the left, as for generation
    rewards = torch.zeros(len(lengths), longest)
    rewards[mask] = -beta * kl
    rewards[:, -1] += scores
    following, returns = torch.zeros(len(lengths)), torch.zeros_like(rewards)
    for t in reversed(range(longest)):
        following = rewards[:, t] + 1.0 * following
        returns[:, t] = following
    return _whitened(returns[mask], torch.repeat_interleave(groups, lengths), n_groups)


def _whitened(returns: Tensor, group_of: Tensor, n_groups: int) -> Tensor:
    advantage = torch.zeros_like(returns)
    for group in range(n_groups):
        own = group_of == group
        values = returns[own]
        advantage[own] = (values - values.mean()) / (values.std() + 1e-8)
    return advantage


def lora_by_masks(
    x: Tensor, down: Sequence[Tensor], up: Sequence[Tensor], roles: Tensor, scale: float, base_out: Tensor
) -> Tensor:
    """One adapter after the other over the rows a mask selects (PEFT's mixed-batch forward)."""
    result = base_out.clone()
    for role, (a, b) in enumerate(zip(down, up, strict=True)):
        rows = torch.nonzero(roles == role).squeeze(1)
        part = x[rows]
        delta = torch.nn.functional.linear(torch.nn.functional.linear(part.to(a.dtype), a), b) * scale
        result[rows] += delta.to(result.dtype)
    return result
