"""Kernels for policy-gradient training of language models; needs torch alone.

    linear_logprob      hidden states -> log-probs, entropy and the policy gradient, in one sweep over the vocabulary
    process_advantage   one score per action -> whitened advantages per token
    policy_loss         PPO, REINFORCE, CISPO, GSPO with importance correction, and metrics
    grouped_lora        many adapters over one batch sorted by role

Each stands in one file beside its eager reference (`*_reference`), and takes `backend="auto"`; `available`, `why_not`
and `chosen` say what runs where.
"""

from mappa_kernels.advantage import process_advantage, process_advantage_reference
from mappa_kernels.dispatch import BackendError, available, chosen, why_not
from mappa_kernels.logprob import linear_logprob, linear_logprob_reference
from mappa_kernels.lora import (
    grouped_lora,
    grouped_lora_fused,
    grouped_lora_fused_reference,
    grouped_lora_reference,
)
from mappa_kernels.policy import PolicyLoss, policy_loss, policy_loss_reference

__all__ = [
    "BackendError",
    "PolicyLoss",
    "available",
    "chosen",
    "grouped_lora",
    "grouped_lora_fused",
    "grouped_lora_fused_reference",
    "grouped_lora_reference",
    "linear_logprob",
    "linear_logprob_reference",
    "policy_loss",
    "policy_loss_reference",
    "process_advantage",
    "process_advantage_reference",
    "why_not",
]
