"""One strict configuration: msgspec structs read from TOML, with dotted overrides from the command line.

    config = load_config("configs/quickstart.toml", ["learn.lr=2e-4", "seed=1"])

An unknown key, a wrong type or a value out of range is a ConfigError with the path to the key.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from mappa.errors import ConfigError


def _doc(text: str, **bounds: float) -> Meta:
    return Meta(description=text, **bounds)  # type: ignore[call-overload]


RewardKind = Literal["process", "outcome", "team", "shuffled"]
GroupBy = Literal["role", "role-turn", "role-kind", "role-task", "role-task-turn", "all"]


class TasksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the tasks come from."""

    source: Annotated[
        str,
        _doc(
            "'quickstart' or 'tabular' (real tables from a package), a folder that holds train/ and heldout/ task "
            "folders, or dsbench:FOLDER, mlebench:FOLDER, jsonl:FILE, datasets:NAME?split=..., gym:GENERATOR?size=..."
        ),
    ] = "quickstart"
    heldout: Annotated[str, _doc("a source of its own for the held-out tasks; empty: the source's held-out part")] = ""
    heldout_tasks: Annotated[int, _doc("tasks set aside for measuring where the source has no held-out part", ge=1)] = 8
    train_tasks: Annotated[int, _doc("training tasks drawn from the source, kinds in proportion; 0 = all", ge=0)] = 0
    seed: Annotated[int, _doc("decides what is set aside and drawn; the run's seed does not", ge=0)] = 0


class SandboxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where model-written code runs, and how much it may use."""

    timeout: Annotated[float, _doc("seconds of wall time one execution may take", gt=0)] = 20.0
    memory_mb: Annotated[
        int, _doc("address space of each process and resident memory of all processes of one execution, MiB", ge=256)
    ] = 4096
    file_mb: Annotated[int, _doc("largest file that may be written, MiB", ge=1)] = 64
    workspace_mb: Annotated[int, _doc("all files of one workspace together, MiB; /tmp and /dev/shm likewise", ge=1)] = (
        256
    )
    workspace_files: Annotated[int, _doc("files and folders one workspace may hold", ge=16)] = 4096
    processes: Annotated[int, _doc("processes and threads one execution may have", ge=1)] = 64
    cgroup: Annotated[
        str,
        _doc(
            "a cgroup v2 folder delegated to the trainer's user, with the controllers memory and pids and no process "
            "in it: the kernel then bounds an execution's processes together. Empty: their resident memory is watched"
        ),
    ] = ""
    output_kb: Annotated[int, _doc("stdout and stderr kept of one execution, KiB each", ge=1)] = 16
    output_limit_mb: Annotated[int, _doc("stdout and stderr together at which an execution is ended, MiB", ge=1)] = 16
    parallel: Annotated[int, _doc("executions at the same time; 0 = one per core", ge=0)] = 0
    recycle_after: Annotated[
        int, _doc("executions after which a fresh server takes over, without a pause; 0 = never", ge=0)
    ] = 5000
    preload: Annotated[
        tuple[str, ...], _doc("modules imported once, before any execution, so that importing them later is free")
    ] = ("numpy", "pandas", "sklearn.ensemble", "sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline")
    tier: Annotated[
        Literal["auto", "fork-server", "bubblewrap", "landlock"],
        _doc("how executions are isolated; auto: as well as this machine can"),
    ] = "auto"
    unsafe: Annotated[
        bool,
        _doc("run model-written code WITHOUT isolation; recorded in the run. Only for code you would run yourself"),
    ] = False


class ChatConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One OpenAI-compatible chat endpoint, and how it may be used."""

    url: Annotated[str, _doc("base address of the endpoint, up to and without /chat/completions")] = (
        "http://127.0.0.1:8000/v1"
    )
    model: Annotated[str, _doc("the model's name as the endpoint knows it")] = ""
    key_env: Annotated[
        str,
        _doc("environment variable that holds the API key; empty: the endpoint asks for none. Never the key itself"),
    ] = ""
    structured: Annotated[
        Literal["json_schema", "json_object", "off"],
        _doc("how the endpoint is told the form of a reply; a reply is checked all the same"),
    ] = "json_schema"
    window: Annotated[
        int, _doc("tokens the model can take in, reply included; a longer prompt is trimmed", ge=2048)
    ] = 32768
    max_tokens: Annotated[int, _doc("longest reply, tokens", ge=64)] = 700
    temperature: Annotated[float, _doc("temperature of a reply", ge=0)] = 0.0
    deadline: Annotated[float, _doc("seconds one score may take, waiting, retries and repair included", gt=0)] = 300.0
    attempt_timeout: Annotated[float, _doc("seconds after which one request is given up and sent again", gt=0)] = 60.0
    attempts: Annotated[int, _doc("requests for one reply at most, hedges not counted", ge=1)] = 8
    backoff: Annotated[
        float, _doc("seconds before the second request at most; doubles with each one, up to 30", gt=0)
    ] = 0.5
    concurrency: Annotated[int, _doc("requests in flight at most; fewer while the endpoint is overloaded", ge=1)] = 64
    requests_per_minute: Annotated[int, _doc("0 = no limit", ge=0)] = 0
    tokens_per_minute: Annotated[int, _doc("prompts and replies together; 0 = no limit", ge=0)] = 0
    hedge: Annotated[
        float,
        _doc("share of requests that may be sent twice, when one takes longer than 95 % do; 0 = none", ge=0, le=1),
    ] = 0.05
    dollars_in: Annotated[float, _doc("price of a million prompt tokens", ge=0)] = 0.0
    dollars_out: Annotated[float, _doc("price of a million reply tokens", ge=0)] = 0.0


class CoachConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who scores actions."""

    kind: Annotated[
        Literal["rubric", "llm", "ensemble", "replay"],
        _doc(
            "'rubric': computed from the evidence alone, no network; 'llm': a model behind `coach.chat`; 'ensemble': "
            "the rubric and every endpoint of [coach.member.NAME]; 'replay': the verdicts of another run's journal"
        ),
    ] = "rubric"
    rubrics: Annotated[
        tuple[str, ...],
        _doc("rubrics by name (data-science, dsbench, maths) or by path; the first that knows a role is used"),
    ] = ("data-science", "maths")
    chat: Annotated[ChatConfig, _doc("the endpoint of kind 'llm'")] = ChatConfig()
    member: Annotated[
        dict[str, ChatConfig], _doc("an endpoint of kind 'ensemble', such as [coach.member.small] model = ...")
    ] = msgspec.field(default_factory=dict)
    agreement: Annotated[
        float, _doc("members agree whose scores lie within so many points of their median", ge=0, le=10)
    ] = 2.0
    quorum: Annotated[float, _doc("share of members that must agree, else there is no score", gt=0, le=1)] = 0.5
    replay: Annotated[str, _doc("journal whose verdicts kind 'replay' gives")] = ""
    monitor: Annotated[
        bool,
        _doc(
            "watch the coach: means, gaps between kinds on actions of equal outcome, drift, canaries. It observes and "
            "changes no score"
        ),
    ] = True
    alarm_rate: Annotated[float, _doc("chance that a run, however long, has any false alarm", gt=0, lt=1)] = 0.05
    canary_every: Annotated[
        int,
        _doc("steps between scorings of the canaries, actions that deserve nothing and ask for a 10; 0 = no", ge=0),
    ] = 10
    anchor_every: Annotated[
        int,
        _doc(
            "steps between scorings of the anchors, actions of the first step that show the coach's drift; 0 = never",
            ge=0,
        ),
    ] = 10
    repeat: Annotated[
        float,
        _doc("share of actions that are scored twice more, to see how exact a single score is", ge=0, le=1),
    ] = 0.01
    correct: Annotated[
        Literal["off", "offset"],
        _doc(
            "'offset': take off each role's scores what one kind of task is favoured by on actions of equal outcome. "
            "(learn.group_by='role-kind' normalises each kind on its own instead)"
        ),
    ] = "off"
    retrospect: Annotated[
        bool,
        _doc(
            "once an episode has its outcome, blame failures on whoever caused them, over the files and messages used"
        ),
    ] = False
    memory: Annotated[
        bool, _doc("show a coach that reads its own record for the role and kind, and the role's recurring faults")
    ] = False
    rewrite_below: Annotated[
        float,
        _doc(
            "actions with code scored below this are rewritten by a coach that reads; what runs and does better in the "
            "sandbox is learned, with weight learn.supervised; 0 = none",
            ge=0,
            le=10,
        ),
    ] = 0.0
    budget_tokens: Annotated[int, _doc("tokens a run may buy, prompts and replies together; 0 = no limit", ge=0)] = 0
    budget_dollars: Annotated[float, _doc("what a run may cost; 0 = no limit", ge=0)] = 0.0


class SGLangConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SGLang servers: started here as child processes, or running already and given by URL."""

    python: Annotated[
        str, _doc("Python of the virtual environment that has sglang; SGLang's pins are not ours, so it needs its own")
    ] = ""
    urls: Annotated[
        tuple[str, ...], _doc("servers that run already, such as http://127.0.0.1:30000; empty: start our own")
    ] = ()
    servers: Annotated[
        int, _doc("servers to start; 0 = one per `tp` GPUs of `gpus`, one where there are none", ge=0)
    ] = 0
    gpus: Annotated[tuple[int, ...], _doc("GPUs our servers run on, `tp` each")] = ()
    tp: Annotated[int, _doc("GPUs of one server (tensor parallel)", ge=1)] = 1
    ports: Annotated[tuple[int, int], _doc("first and last port our servers may listen on")] = (30000, 39999)
    args: Annotated[tuple[str, ...], _doc("further arguments of our servers' sglang.launch_server")] = ()
    environment: Annotated[dict[str, str], _doc("further environment variables of our servers")] = msgspec.field(
        default_factory=dict
    )
    seeded: Annotated[
        bool,
        _doc(
            "start servers with deterministic inference, slower, so that a request's seed decides what is sampled; "
            "other servers ignore seeds"
        ),
    ] = False
    load: Annotated[
        Literal["auto", "folder", "tensors"],
        _doc(
            "how adapters get there: files in /dev/shm, or within the request; auto: files where every server is on "
            "this machine"
        ),
    ] = "auto"
    loras_per_batch: Annotated[
        int, _doc("adapters our servers decode together, the base counts as one; 0 = two versions per role", ge=0)
    ] = 0
    canary_tolerance: Annotated[
        float,
        _doc(
            "how far a server's log-probs of the canary may lie from the learner's, on average, nats; "
            "0 = 1e-3 with a float32 base, 0.15 with bfloat16",
            ge=0,
        ),
    ] = 0.0
    start_timeout: Annotated[float, _doc("seconds a server may take to come up", gt=0)] = 900.0
    deadline: Annotated[
        float, _doc("seconds a request may take on one server; then that server counts as hanging", gt=0)
    ] = 900.0
    health_interval: Annotated[float, _doc("seconds between looks at a server's health", gt=0)] = 10.0
    health_timeout: Annotated[float, _doc("seconds a server may take to answer one", gt=0)] = 30.0
    restarts: Annotated[int, _doc("failed starts in a row after which a server is given up", ge=0)] = 3


class OutsideConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that plays a role from outside, behind an OpenAI-compatible chat endpoint."""

    url: Annotated[str, _doc("base address of the endpoint, without /chat/completions")]
    model: Annotated[str, _doc("the model's name as the endpoint knows it")]
    key_env: Annotated[str, _doc("environment variable that holds the API key; empty: none is asked for")] = ""
    timeout: Annotated[float, _doc("seconds one answer may take", gt=0)] = 120.0
    attempts: Annotated[int, _doc("requests for one answer at most", ge=1)] = 4
    concurrency: Annotated[int, _doc("requests in flight at most", ge=1)] = 16


class SamplerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who generates, and how."""

    kind: Annotated[Literal["local", "sglang"], _doc("'local': in this process; 'sglang': SGLang servers")] = "local"
    temperature: Annotated[float, _doc("temperature of training rollouts", gt=0)] = 0.6
    max_rows: Annotated[int, _doc("sequences decoded together", ge=1)] = 48
    max_context: Annotated[int, _doc("longest prompt plus output, tokens", ge=16)] = 2048
    exact: Annotated[
        bool,
        _doc(
            "give every request the same tokens and log-probs, bit for bit, whatever else is in the batch: a resumed "
            "run then ends as one that was never interrupted. Slower; the local sampler only"
        ),
    ] = False
    sglang: Annotated[SGLangConfig, _doc("the servers of kind 'sglang'")] = SGLangConfig()


class RolloutConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The episodes of one step."""

    episodes: Annotated[int, _doc("episodes per step", ge=1)] = 18
    samples_per_task: Annotated[int, _doc("episodes of one task within a step", ge=1)] = 1
    repair_upstream: Annotated[
        bool,
        _doc(
            "when a role fails, let the next one work from reference artefacts, so that it is judged on its own merit"
        ),
    ] = True
    deadline: Annotated[
        float,
        _doc(
            "seconds from an episode's first generation to its end; then it is cut, and what it finished and scored is "
            "still learned from. A system that has asked for no generation by then is ended",
            gt=0,
        ),
    ] = 600.0
    patience: Annotated[
        float,
        _doc("seconds a system may compute without awaiting anything, and hold up all others; then it is ended", gt=0),
    ] = 30.0
    tokens_in_flight: Annotated[
        int, _doc("tokens being generated at once: prompts, and what may be written behind them", ge=1)
    ] = 262_144
    order: Annotated[
        Literal["longest-first", "first-come"],
        _doc(
            "who generates first where that bound holds episodes back: who has most work before it, or who asked first"
        ),
    ] = "longest-first"
    max_staleness: Annotated[
        int,
        _doc(
            "published versions an action's sampler may be behind the learner; 0: each step's episodes wait for its "
            "update. Above 0, the next steps' episodes run while the learner learns",
            ge=0,
        ),
    ] = 0
    max_actions: Annotated[
        int, _doc("actions an episode may have before it is counted as lost: a system that never ends is ended", ge=1)
    ] = 64


_Share = Annotated[float, Meta(ge=0, le=1)]


class RoleLearnConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one role does in another way than `learn` says; what is not given is as there."""

    lr: Annotated[Annotated[float, Meta(gt=0)] | None, _doc("peak learning rate")] = None
    schedule: Annotated[Literal["cosine", "constant"] | None, _doc("learning rate after the warm-up")] = None
    lr_final: Annotated[_Share | None, _doc("learning rate at the last step, as a share of the peak")] = None
    warmup: Annotated[Annotated[int, Meta(ge=0)] | None, _doc("steps of linear warm-up")] = None
    clip_norm: Annotated[Annotated[float, Meta(ge=0)] | None, _doc("gradient norm limit; 0 = none")] = None
    frozen: Annotated[bool, _doc("act with it, never change it")] = False


class LearnConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The update: adapters, optimiser, objective, DeepSpeed."""

    model: Annotated[str, _doc("base model; the run's own `model` unless the learner is embedded elsewhere")] = ""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], _doc("of the frozen base; auto: as the run's `dtype`")] = (
        "auto"
    )
    roles: Annotated[
        tuple[str, ...], _doc("roles, each with an adapter of its own; the system's, unless embedded")
    ] = ()
    seed: Annotated[int, _doc("seed of the adapters' initial weights; the run's own unless embedded", ge=0)] = 0
    start: Annotated[
        str, _doc("folder of adapters to start from, such as runs/OTHER/adapters; those it does not hold start anew")
    ] = ""
    rank: Annotated[int, _doc("rank of every adapter", ge=1, le=256)] = 16
    alpha: Annotated[float, _doc("LoRA scale is alpha / rank", gt=0)] = 32.0
    targets: Annotated[tuple[str, ...], _doc("names of the linear layers that get an adapter")] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    first_layer: Annotated[
        int, _doc("lowest decoder layer with adapters: the layers below are shared with the reference model", ge=0)
    ] = 0
    lr: Annotated[float, _doc("peak learning rate", gt=0)] = 2e-4
    schedule: Annotated[
        Literal["cosine", "constant"], _doc("learning rate after the warm-up: falling to lr_final, or as it is")
    ] = "cosine"
    lr_final: Annotated[float, _doc("learning rate at the last step, as a share of the peak", ge=0, le=1)] = 0.1
    warmup: Annotated[int, _doc("steps of linear warm-up", ge=0)] = 0
    betas: Annotated[tuple[float, float], _doc("AdamW betas")] = (0.9, 0.95)
    eps: Annotated[
        float,
        _doc(
            "AdamW epsilon. Adam steps as far on faint gradients as on strong ones; a role whose gradients lie well "
            "below eps, because it has little left to learn, hardly moves",
            gt=0,
        ),
    ] = 1e-8
    weight_decay: Annotated[float, _doc("AdamW weight decay", ge=0)] = 0.0
    clip_norm: Annotated[float, _doc("gradient norm limit of each role on its own; 0 = none", ge=0)] = 1.0
    role: Annotated[
        dict[str, RoleLearnConfig], _doc("a role's own settings, such as [learn.role.modeler] lr = 1e-4")
    ] = msgspec.field(default_factory=dict)
    loss: Annotated[
        Literal["ppo", "reinforce", "cispo", "gspo"], _doc("objective; mappa_kernels.policy_loss says what each is")
    ] = "ppo"
    beta: Annotated[float, _doc("weight of the per-token KL to the base in the reward", ge=0)] = 0.01
    clip: Annotated[float, _doc("PPO clip range of the ratio to the sampler's policy", gt=0, le=1)] = 0.2
    clip_high: Annotated[float, _doc("its upper side where that differs; 0 = as clip", ge=0)] = 0.0
    tis_cap: Annotated[
        float,
        _doc(
            "weigh tokens by the learner's over the sampler's probability, cut off here, and take the ratio to the "
            "learner's own policy; 0 = take the ratio to the sampler's",
            ge=0,
        ),
    ] = 0.0
    epochs: Annotated[int, _doc("optimiser steps on each batch", ge=1)] = 1
    mask_truncated: Annotated[
        bool,
        _doc(
            "leave actions that ended at the token limit out of the loss (the paper's rule, for reasoning cut short); "
            "false: they count with the score they got, where running on is itself the fault"
        ),
    ] = True
    reward: Annotated[
        RewardKind,
        _doc(
            "what an action is rewarded with. 'process': its own score; and, to compare with: 'outcome': whether its "
            "episode succeeded; 'team': the mean score of its episode; 'shuffled': the score of another action"
        ),
    ] = "process"
    advantage: Annotated[
        Literal["reinforce++", "grpo", "rloo"],
        _doc(
            "'reinforce++': returns, normalised over the tokens of a group; 'grpo': scores, normalised over its "
            "actions; 'rloo': scores less the mean of its other actions. The last two are meant for groups of one task "
            "(group_by, rollout.samples_per_task)"
        ),
    ] = "reinforce++"
    whiten: Annotated[
        bool, _doc("reinforce++: normalise advantages to mean 0, standard deviation 1 within each group")
    ] = True
    group_by: Annotated[
        GroupBy,
        _doc("the groups advantages are normalised within: actions of one role, and of one turn, kind of task or task"),
    ] = "role"
    supervised: Annotated[
        float,
        _doc("weight of the log-likelihood of a corrected action's tokens, beside advantages of unit size", ge=0),
    ] = 0.1
    tokens_per_micro_batch: Annotated[
        int, _doc("packed tokens per forward and backward pass on one rank, prefixes counted once", ge=64)
    ] = 2048
    checkpoint_activations: Annotated[
        bool, _doc("keep one hidden state per layer and compute the rest again in the backward pass")
    ] = False
    zero_stage: Annotated[
        Literal[0, 1, 2, 3], _doc("DeepSpeed ZeRO stage; adapters are small, so 3 pays only with shard_base")
    ] = 2
    shard_base: Annotated[
        bool,
        _doc("ZeRO-3: divide the frozen base among the ranks too, gathered layer by layer; no sampler can use it then"),
    ] = False
    offload: Annotated[bool, _doc("ZeRO 1 to 3: keep optimiser state in host memory and update there")] = False


def role_setting(config: LearnConfig, role: str, name: str) -> Any:
    """A setting as it holds for `role`: its own where it has one, else that of all."""
    own = getattr(config.role.get(role), name, None)
    return getattr(config, name) if own is None else own


class ServeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mappa serve`: one base, and an adapter for every model that a client creates."""

    model: Annotated[str, _doc("base model: a local folder, a hub name, or 'smollm2-135m-instruct'", min_length=1)]
    name: Annotated[str, _doc("what clients call the base; empty: as `model`")] = ""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], _doc("of the frozen base")] = "auto"
    host: Annotated[str, _doc("address to listen on; any but a loopback address opens the server to others")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _doc("port to listen on; 0 = any that is free", ge=0, le=65535)] = 8000
    state: Annotated[str, _doc("folder of saved weights and of what survives a restart")] = "serve-state"
    rank: Annotated[int, _doc("largest rank a model may have; all are computed at this one", ge=1, le=256)] = 32
    alpha: Annotated[float, _doc("LoRA scale is alpha / the model's own rank", gt=0)] = 32.0
    max_models: Annotated[int, _doc("models held in memory", ge=1)] = 16
    max_samplers: Annotated[int, _doc("saved weights held in memory for sampling; others are read again", ge=1)] = 32
    max_context: Annotated[int, _doc("longest training sequence, and longest prompt plus output, tokens", ge=16)] = 2048
    max_rows: Annotated[int, _doc("sequences decoded together", ge=1)] = 48
    tokens_per_micro_batch: Annotated[
        int, _doc("packed tokens per forward and backward pass, prefixes counted once", ge=64)
    ] = 4096
    checkpoint_activations: Annotated[
        bool, _doc("keep one hidden state per layer and compute the rest again in the backward pass")
    ] = False
    exact: Annotated[
        bool, _doc("sample the same, bit for bit, whatever else is sampled with it; training always is so. Slower")
    ] = False
    gather: Annotated[float, _doc("seconds a forward_backward waits for those of other clients to join it", ge=0)] = (
        0.005
    )
    session_timeout: Annotated[
        float, _doc("seconds without a sign of its client after which a session is closed", gt=0)
    ] = 600.0
    result_timeout: Annotated[float, _doc("seconds a finished request's result is kept", gt=0)] = 600.0
    threads: Annotated[int, _doc("CPU threads; 0 = all cores", ge=0)] = 0


class EvaluateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the team is measured on the held-out tasks, before and after."""

    samples: Annotated[int, _doc("sampled episodes per task", ge=0)] = 8
    greedy: Annotated[bool, _doc("also one greedy episode per task")] = True
    temperature: Annotated[float, _doc("temperature of the sampled episodes", gt=0)] = 0.6
    every: Annotated[int, _doc("steps between further measurements on the way; 0 = none", ge=0)] = 0


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who else gets a step's numbers; TensorBoard files are always written."""

    wandb: Annotated[
        Literal["off", "online", "offline"],
        _doc("'offline': files in the run's folder, for `wandb sync`; needs pip install wandb"),
    ] = "off"
    trackio: Annotated[bool, _doc("also log to trackio, on this machine; needs pip install trackio")] = False
    project: Annotated[str, _doc("the project's name there", min_length=1)] = "mappa"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run."""

    name: Annotated[str, _doc("name of the run's folder under `runs`", min_length=1)]
    model: Annotated[
        str, _doc("base model: a local folder, a hub name, or 'smollm2-135m-instruct' (from a package, no hub needed)")
    ] = "smollm2-135m-instruct"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        _doc("of the frozen base; auto: bfloat16 where the machine multiplies it natively, else float32"),
    ] = "auto"
    system: Annotated[str, _doc("the team: 'module:name'")] = "mappa.systems.datascience:DataScienceTeam"
    adapters: Annotated[
        Literal["per-role", "shared"],
        _doc("'per-role': as the system's roles say, each its own unless they name one; 'shared': one for all of them"),
    ] = "per-role"
    runs: Annotated[str, _doc("folder that holds the run folders")] = "runs"
    seed: Annotated[int, _doc("everything random derives from it", ge=0)] = 0
    steps: Annotated[int, _doc("updates", ge=1)] = 10
    save_every: Annotated[int, _doc("steps between checkpoints", ge=1)] = 1
    keep: Annotated[int, _doc("checkpoints kept", ge=1)] = 2
    threads: Annotated[int, _doc("CPU threads of one rank; 0 = cores divided by ranks", ge=0)] = 0
    tasks: Annotated[TasksConfig, _doc("where the tasks come from")] = TasksConfig()
    sandbox: Annotated[SandboxConfig, _doc("where model-written code runs")] = SandboxConfig()
    coach: Annotated[CoachConfig, _doc("who scores actions")] = CoachConfig()
    sampler: Annotated[SamplerConfig, _doc("who generates")] = SamplerConfig()
    outside: Annotated[
        dict[str, OutsideConfig], _doc("models that play roles from outside, such as [outside.teacher] url = ...")
    ] = msgspec.field(default_factory=dict)
    rollout: Annotated[RolloutConfig, _doc("the episodes of one step")] = RolloutConfig()
    learn: Annotated[LearnConfig, _doc("the update")] = LearnConfig()
    evaluate: Annotated[EvaluateConfig, _doc("measurement on held-out tasks")] = EvaluateConfig()
    log: Annotated[LogConfig, _doc("where a step's numbers go besides TensorBoard")] = LogConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read TOML at `path`, apply `section.key=value` overrides, check everything. Raises ConfigError."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; configs/ holds the ones that come with mappa") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    for override in overrides:
        _apply(raw, override)
    return config_from(raw, where=str(path))


def config_from(raw: dict[str, Any], *, where: str = "config") -> Config:
    """Check plain data against `Config`. Raises ConfigError that names the wrong key and the nearest right one."""
    _refuse_unknown(raw, Config, prefix="", where=where)
    try:
        # TOML has no tuples and writes 1 where 1.0 is meant; everything else must be of its type.
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_readable(str(error))}") from None
    if config.learn.shard_base:
        raise ConfigError(
            f"{where}: learn.shard_base divides the base that sampler.kind='local' generates with; leave it out here. "
            "It is for learners whose samples come from elsewhere"
        )
    if not config.coach.monitor and (config.coach.correct != "off" or config.coach.memory):
        raise ConfigError(
            f"{where}: coach.correct and coach.memory live on what coach.monitor has seen; leave it on, or both off"
        )
    if config.coach.rewrite_below and config.coach.kind not in ("llm", "ensemble"):
        raise ConfigError(
            f"{where}: coach.rewrite_below needs a coach that writes; coach.kind is {config.coach.kind!r}, set it to "
            "'llm' or 'ensemble'"
        )
    if config.sampler.kind == "local" and config.rollout.max_staleness > 0:
        raise ConfigError(
            f"{where}: rollout.max_staleness={config.rollout.max_staleness} lets episodes run while the learner "
            "learns, and sampler.kind='local' generates with the learner's own layers; set it to 0"
        )
    return config


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `section.key=value` overrides. Raises ConfigError."""
    raw = msgspec.to_builtins(config)
    for text in overrides:
        _apply(raw, text)
    return config_from(raw)


def serve_config(overrides: Sequence[str]) -> ServeConfig:
    """A ServeConfig from `key=value` settings. Raises ConfigError."""
    raw: dict[str, Any] = {}
    for text in overrides:
        _apply(raw, text)
    _refuse_unknown(raw, ServeConfig, prefix="", where="mappa serve")
    try:
        config = msgspec.convert(raw, ServeConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"mappa serve: {_readable(str(error))}") from None
    if config.max_context > config.tokens_per_micro_batch:
        raise ConfigError(
            f"mappa serve: max_context={config.max_context} does not fit "
            f"tokens_per_micro_batch={config.tokens_per_micro_batch}; raise it"
        )
    return config


def cache_home() -> Path:
    """Where base models and prepared tasks are kept: $MAPPA_HOME, or ~/.cache/mappa."""
    return Path(os.environ.get("MAPPA_HOME") or Path.home() / ".cache" / "mappa")


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MAY_CHANGE = ("coach.budget_tokens", "coach.budget_dollars")
"""What a run may go on with another value of: how far it gets, not what it does, depends on it."""


def differences(old: Config, new: Config) -> list[str]:
    """One line per value that differs and must not: `learn.lr: 0.0005 -> 0.0002`."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    keys = [key for key in before if key not in MAY_CHANGE and before[key] != after[key]]
    return [f"{key}: {before[key]} -> {after[key]}" for key in keys]


def describe(struct: type[Struct] = Config) -> str:
    """Every key of the config with its type, default and meaning, a line each."""
    lines = []
    for key, kind, default, text in _fields(struct, ""):
        shown = "required" if default is msgspec.NODEFAULT else f"default {default!r}"
        lines.append(f"  {key} ({kind}, {shown})\n      {text}")
    return "\n".join(lines)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: model=path/to/folder
    *sections, name = key.strip().split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    raw[name] = value


def _refuse_unknown(raw: dict[str, Any], struct: type[Struct], *, prefix: str, where: str) -> None:
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, value in raw.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {prefix}{name}; {hint}")
        inner, by_name = _struct_of(known[name].type)
        if inner is not None and isinstance(value, dict):
            sections = {f"{prefix}{name}.{key}.": part for key, part in value.items()} if by_name else {}
            for place, part in (sections or {f"{prefix}{name}.": value}).items():
                if isinstance(part, dict):
                    _refuse_unknown(part, inner, prefix=place, where=where)


def _struct_of(annotation: Any) -> tuple[type[Struct] | None, bool]:
    """The section an annotation stands for, if any, and whether it is one of several that go by name."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    by_name = get_origin(kind) is dict
    if by_name:
        kind = get_args(kind)[1]
    return (kind, by_name) if isinstance(kind, type) and issubclass(kind, Struct) else (None, False)


def _readable(message: str) -> str:
    found = re.match(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", message, re.S)
    assert found is not None
    return f"{found['path']}: {found['what']}" if found["path"] else found["what"]


def _fields(struct: type[Struct], prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind, meta = get_args(hints[field.name])
        inner, by_name = _struct_of(hints[field.name])
        if inner is not None:
            yield from _fields(inner, f"{prefix}{field.name}.{'NAME.' if by_name else ''}")
        else:
            shown = _readable_type(kind)
            yield f"{prefix}{field.name}", shown, field.default, meta.description


def _readable_type(kind: Any) -> str:
    """`float`, `'a' | 'b'`, `int | None`."""
    if get_origin(kind) is Annotated:
        return _readable_type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    if type(None) in get_args(kind):
        return f"{_readable_type(get_args(kind)[0])} | None"
    return getattr(kind, "__name__", str(kind))


def _flatten(config: Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if isinstance(value, Struct):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
