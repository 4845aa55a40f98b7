"""[learn], [learn.role.NAME]: the update."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mappa.config.described import LARGEST_SEED, doc

RewardKind = Literal["process", "outcome", "team", "shuffled"]


GroupBy = Literal["role", "role-turn", "role-kind", "role-task", "role-task-turn", "all"]


_Share = Annotated[float, Meta(ge=0, le=1)]
_Beta = Annotated[float, Meta(ge=0, lt=1)]


class RoleLearnConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role does in another way than `learn` says; what is not given is as there."""

    lr: Annotated[Annotated[float, Meta(gt=0)] | None, doc("peak learning rate")] = None
    schedule: Annotated[Literal["cosine", "constant"] | None, doc("learning rate after the warm-up")] = None
    lr_final: Annotated[_Share | None, doc("learning rate at the last step, as a share of the peak")] = None
    warmup: Annotated[Annotated[int, Meta(ge=0)] | None, doc("steps of linear warm-up")] = None
    clip_norm: Annotated[Annotated[float, Meta(ge=0)] | None, doc("gradient norm limit; 0 = none")] = None
    frozen: Annotated[bool, doc("act with it, never change it")] = False


class LearnConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The update: adapters, optimiser, objective, DeepSpeed."""

    model: Annotated[str, doc("base model; the run's own `model` unless the learner is embedded elsewhere")] = ""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], doc("of the frozen base; the run's own `dtype` unless embedded")
    ] = "auto"
    roles: Annotated[tuple[str, ...], doc("roles, each with an adapter of its own; the system's, unless embedded")] = ()
    seed: Annotated[
        int, doc("seed of the adapters' initial weights; the run's own unless embedded", ge=0, le=LARGEST_SEED)
    ] = 0
    start: Annotated[
        str, doc("folder of adapters to start from, such as runs/OTHER/adapters; those it does not hold start anew")
    ] = ""
    rank: Annotated[int, doc("rank of every adapter", ge=1, le=256)] = 16
    alpha: Annotated[float, doc("LoRA scale is alpha / rank", gt=0)] = 32.0
    targets: Annotated[tuple[str, ...], doc("names of the linear layers that get an adapter")] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    first_layer: Annotated[
        int, doc("lowest decoder layer with adapters: the layers below are shared with the reference model", ge=0)
    ] = 0
    lr: Annotated[float, doc("peak learning rate", gt=0)] = 2e-4
    schedule: Annotated[
        Literal["cosine", "constant"], doc("learning rate after the warm-up: falling to lr_final, or as it is")
    ] = "cosine"
    lr_final: Annotated[float, doc("learning rate at the last step, as a share of the peak", ge=0, le=1)] = 0.1
    warmup: Annotated[int, doc("steps of linear warm-up", ge=0)] = 0
    betas: Annotated[tuple[_Beta, _Beta], doc("AdamW betas, from 0 to below 1")] = (0.9, 0.95)
    eps: Annotated[
        float,
        doc(
            "AdamW epsilon. Adam steps as far on faint gradients as on strong ones; a role whose gradients lie well "
            "below eps, because it has little left to learn, hardly moves",
            gt=0,
        ),
    ] = 1e-8
    weight_decay: Annotated[float, doc("AdamW weight decay", ge=0)] = 0.0
    clip_norm: Annotated[float, doc("gradient norm limit of each role on its own; 0 = none", ge=0)] = 1.0
    role: Annotated[
        dict[str, RoleLearnConfig], doc("a role's own settings, such as [learn.role.modeler] lr = 1e-4")
    ] = msgspec.field(default_factory=dict)
    loss: Annotated[
        Literal["ppo", "reinforce", "cispo", "gspo"], doc("objective; mappa_kernels.policy_loss says what each is")
    ] = "ppo"
    beta: Annotated[float, doc("weight of the per-token KL to the base in the reward", ge=0)] = 0.01
    clip: Annotated[float, doc("PPO clip range of the ratio to the sampler's policy", gt=0, le=1)] = 0.2
    clip_high: Annotated[float, doc("its upper side where that differs; 0 = as clip", ge=0)] = 0.0
    tis_cap: Annotated[
        float,
        doc(
            "weigh tokens by the learner's over the sampler's probability, cut off here, and take the ratio to the "
            "learner's own policy before the step; 0 = take the ratio to the sampler's, in every epoch",
            ge=0,
        ),
    ] = 0.0
    epochs: Annotated[int, doc("optimiser steps on each batch", ge=1)] = 1
    mask_truncated: Annotated[
        bool,
        doc(
            "leave actions that ended at the token limit out of the loss (the paper's rule, for reasoning cut short); "
            "false: they count with the score they got, where running on is itself the fault"
        ),
    ] = True
    reward: Annotated[
        RewardKind,
        doc(
            "what an action is rewarded with. 'process': its own score; and, to compare with: 'outcome': whether its "
            "episode succeeded; 'team': the mean score of its episode; 'shuffled': the score of another action"
        ),
    ] = "process"
    advantage: Annotated[
        Literal["reinforce++", "grpo", "rloo"],
        doc(
            "'reinforce++': returns, normalised over the tokens of a group; 'grpo': scores, normalised over its "
            "actions; 'rloo': scores less the mean of its other actions. The last two are meant for groups of one task "
            "(group_by, rollout.samples_per_task)"
        ),
    ] = "reinforce++"
    whiten: Annotated[
        bool, doc("reinforce++: normalise advantages to mean 0, standard deviation 1 within each group")
    ] = True
    group_by: Annotated[
        GroupBy,
        doc("the groups advantages are normalised within: actions of one role, and of one turn, kind of task or task"),
    ] = "role"
    supervised: Annotated[
        float,
        doc("weight of the log-likelihood of a corrected action's tokens, beside advantages of unit size", ge=0),
    ] = 0.1
    tokens_per_micro_batch: Annotated[
        int, doc("packed tokens per forward and backward pass on one rank, prefixes counted once", ge=64)
    ] = 2048
    checkpoint_activations: Annotated[
        bool, doc("keep one hidden state per layer and compute the rest again in the backward pass")
    ] = False
    zero_stage: Annotated[
        Literal[0, 1, 2, 3], doc("DeepSpeed ZeRO stage; adapters are small, so 3 pays only with shard_base")
    ] = 2
    shard_base: Annotated[
        bool,
        doc("ZeRO-3: divide the frozen base among the ranks too, gathered layer by layer; no sampler can use it then"),
    ] = False
    offload: Annotated[bool, doc("ZeRO 1 to 3: keep optimiser state in host memory and update there")] = False


def role_setting(config: LearnConfig, role: str, name: str) -> Any:
    """A setting as it holds for `role`: its own where it has one, else that of all."""
    own = getattr(config.role.get(role), name, None)
    return getattr(config, name) if own is None else own
