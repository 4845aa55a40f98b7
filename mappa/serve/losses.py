"""The losses a client may name: functions from log-probs to a loss per token, as the API defines them.

With x the learner's log-prob of a target, q the sampler's (`logprobs`), A its advantage and r = exp(x - q):

    cross_entropy        -w x                           w from `weights`, 1 where there are none
    importance_sampling  -r A
    ppo                  -min(r A, clip(r) A)
    cispo                -stop(clip(r)) x A

clip limits r to [clip_low_threshold, clip_high_threshold], given for all tokens or per token. A request's loss is the
sum over its tokens: no mean is taken, and nothing is masked but by zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mappa.serve.errors import UserError

Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""(log-probs [N], inputs [N] by name) -> loss [N]"""

TARGETS = "target_tokens"
_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}


def cross_entropy(logprob: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return -inputs["weights"] * logprob


def importance_sampling(logprob: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return -(logprob - inputs["logprobs"]).exp() * inputs["advantages"]


def ppo(logprob: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    ratio = (logprob - inputs["logprobs"]).exp()
    return -torch.minimum(ratio * inputs["advantages"], _clipped(ratio, inputs) * inputs["advantages"])


def cispo(logprob: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    ratio = (logprob.detach() - inputs["logprobs"]).exp()
    return -_clipped(ratio, inputs) * logprob * inputs["advantages"]


def _clipped(ratio: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.clamp(ratio, inputs["clip_low_threshold"], inputs["clip_high_threshold"])


_RL: dict[str, float | None] = {"logprobs": None, "advantages": None}
_NEEDS: dict[str, tuple[Loss, dict[str, float | None]]] = {
    "cross_entropy": (cross_entropy, {"weights": 1.0}),
    "importance_sampling": (importance_sampling, _RL),
    "ppo": (ppo, {**_RL, **_CLIP}),
    "cispo": (cispo, {**_RL, **_CLIP}),
}
"""By name: the loss, and its inputs beside the targets with what stands in for a missing one (None: it is needed)."""


def choose(name: str) -> Loss:
    """Raises UserError for a loss there is not."""
    return _find(name)[0]


def complete(
    name: str, settings: Mapping[str, float | str], inputs: Mapping[str, Tensor], shape: torch.Size
) -> dict[str, Tensor]:
    """The inputs of a datum for loss `name`, flattened, defaults and `settings` filled in; `shape` is its targets'.

    Raises UserError naming the input that is missing, unknown, of another shape or not finite.
    """
    wanted = _find(name)[1]
    unknown = (set(inputs) - set(wanted)) | (set(settings) - (set(wanted) & set(_CLIP)))
    if unknown:
        raise UserError(f"{name} takes no {sorted(unknown)[0]!r}; its inputs are {', '.join([TARGETS, *wanted])}")
    filled = {}
    for key, default in wanted.items():
        given = inputs.get(key)
        if given is None:
            value = settings.get(key, default)
            if not isinstance(value, int | float):
                raise UserError(f"{name} needs {key!r}" if value is None else f"{key} must be a number, not {value!r}")
            given = torch.full(shape, float(value))
        elif key in settings:
            raise UserError(f"{key} is given per token and in loss_fn_config; give it once")
        if given.shape != shape:
            raise UserError(f"{key} has shape {list(given.shape)}, {TARGETS} has {list(shape)}")
        if not bool(given.isfinite().all()):
            raise UserError(f"{key} holds a NaN or infinite value")
        filled[key] = given.float().flatten()
    return filled


def _find(name: str) -> tuple[Loss, dict[str, float | None]]:
    if name not in _NEEDS:
        raise UserError(f"no loss {name!r} here; there are {', '.join(_NEEDS)}")
    return _NEEDS[name]
