"""Requests in JSON, as the client `tinker` 0.38 writes them. What a server does not know of is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What most requests have in common: their own name, sent along and not needed."""

    type: str = ""


class Ignored(Struct, frozen=True):
    """A request whose content does not matter here: settings asked for, telemetry."""


class CreateSession(Message, frozen=True, kw_only=True):
    tags: list[str] = field(default_factory=list)
    user_metadata: dict[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None


class Heartbeat(Message, frozen=True, kw_only=True):
    session_id: str


class LoraConfig(Message, frozen=True, kw_only=True):
    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Message, frozen=True, kw_only=True):
    type: Literal["adamw"] = "adamw"


class CreateModel(Message, frozen=True, kw_only=True):
    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()


class GetInfo(Message, frozen=True, kw_only=True):
    model_id: str


class AdamParams(Message, frozen=True, kw_only=True):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStep(Message, frozen=True, kw_only=True):
    model_id: str
    seq_id: int
    adam_params: AdamParams


class SaveWeights(Message, frozen=True, kw_only=True):
    model_id: str
    seq_id: int
    path: str
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveForSampler(Message, frozen=True, kw_only=True):
    model_id: str
    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, str] | None = None


class LoadWeights(Message, frozen=True, kw_only=True):
    """Into a model there is (model_id, seq_id), or into a new one (session_id, model_seq_id)."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None


class WeightsInfo(Message, frozen=True, kw_only=True):
    tinker_path: str
    weights_access_token: str | None = None


class CreateSamplingSession(Message, frozen=True, kw_only=True):
    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class JoinSamplingSession(Message, frozen=True, kw_only=True):
    sampling_session_id: str


class Chunk(Struct, frozen=True, forbid_unknown_fields=True, tag="encoded_text", tag_field="type"):
    """Prompts are text here: images and sounds are refused."""

    tokens: list[int]


class Prompt(Struct, frozen=True, forbid_unknown_fields=True):
    chunks: list[Chunk]


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str | int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Sample(Message, frozen=True, kw_only=True):
    prompt: Prompt
    sampling_params: SamplingParams
    num_samples: int = 1
    sampling_session_id: str
    seq_id: int
    base_model: str | None = None
    model_path: str | None = None
    prompt_logprobs: bool | None = None
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Mapping[str, Any] | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None


class RetrieveFuture(Message, frozen=True, kw_only=True):
    request_id: str
    allow_metadata_only: bool = False


class CancelFuture(Message, frozen=True, kw_only=True):
    request_id: str
