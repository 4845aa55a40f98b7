"""What a run would need, before there is a machine for it: everything is loaded but the weights.

    python -m mappa.train CONFIG --dry-run --ranks 8 [--gpu-gb 80]

Memory is predicted (learn/memory.py), tokens are upper bounds from the roles' limits, dollars are a coach's at the
config's prices. A run that cannot fit is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct

from mappa.config import Config, LearnConfig, cache_home
from mappa.errors import ConfigError
from mappa.learn.memory import DEVICE_PARTS, GB, SHAPES, Memory, MemorySettings, ModelShape, predict
from mappa.systems import System
from mappa.tasks import TaskSet

COACH_REPLY = 700
"""Tokens of a coach's reply, for its price."""
KNOWN = {
    "qwen/qwen3-4b": SHAPES["4B"],
    "qwen/qwen3-8b": SHAPES["8B"],
    "qwen/qwen3-14b": SHAPES["14B"],
    "qwen/qwen3-32b": SHAPES["32B"],
    "deepseek-ai/deepseek-r1-distill-qwen-1.5b": ModelShape(
        hidden=1536,
        intermediate=8960,
        layers=28,
        heads=12,
        kv_heads=2,
        head_dim=128,
        vocabulary=151_936,
        tied=False,
        qkv_bias=True,
    ),
}
"""Shapes of models that cannot be read here, by hub name."""


class Plan(Struct, frozen=True, kw_only=True):
    """What a run comes to. Tokens are per epoch (one pass over the training tasks) and at most."""

    train_tasks: int
    heldout_tasks: int
    episodes: int
    """Of an epoch."""
    steps: float
    """Of an epoch."""
    epochs: float
    actions: int
    generated: int
    read: int
    """Tokens of the contexts, every action's counted in full."""
    coach_tokens: int
    dollars: float | None
    """Of the coach, per epoch; None where none is bought."""
    memory: Memory
    sequence: int
    """Bytes that a sequence of `sampler.max_context` tokens holds of keys and values."""
    server: int
    """Bytes of the base's second copy, in a server on the same GPU; 0 where generation uses the learner's."""
    notes: tuple[str, ...] = ()

    @property
    def needed(self) -> int:
        """Bytes per GPU without which no step can be done."""
        return self.memory.total + self.server + self.sequence


def make_plan(config: Config, learn: LearnConfig, system: System, tasks: TaskSet, *, ranks: int) -> Plan:
    """Work out what `config` comes to on `ranks` GPUs; `learn` is the learner's part of it. Raises ConfigError."""
    shape, note = model_shape(config.model)
    dtype: Literal["bfloat16", "float32"] = "float32" if config.dtype == "float32" else "bfloat16"
    context = config.sampler.max_context
    check_lengths(config, system)
    actions = {role.name: getattr(system, "turns", {}).get(role.name, 1) for role in system.roles}
    per_episode = sum(actions.values())
    generated = sum(actions[role.name] * role.max_tokens for role in system.roles)
    reread = sum(actions[role.name] * (context - role.max_tokens) for role in system.roles)
    episodes = len(tasks.train) * config.rollout.samples_per_task
    prices = _coach_prices(config)
    scored = episodes * (generated + reread)
    replies = episodes * per_episode * COACH_REPLY
    element = 2 if dtype == "bfloat16" else 4
    steps = episodes / config.rollout.episodes
    return Plan(
        train_tasks=len(tasks.train),
        heldout_tasks=len(tasks.heldout),
        episodes=episodes,
        steps=steps,
        epochs=config.steps / steps,
        actions=episodes * per_episode,
        generated=episodes * generated,
        read=episodes * reread,
        coach_tokens=scored + replies if prices is not None else 0,
        dollars=(scored * prices[0] + replies * prices[1]) / 1e6 if prices is not None else None,
        memory=predict(shape, MemorySettings.of(learn, dtype=dtype, world_size=ranks)),
        sequence=2 * shape.layers * shape.kv_heads * shape.head_dim * element * context,
        server=0 if config.sampler.kind == "local" else sum(shape.tensors) * element,
        notes=(*([note] if note else []), *tasks.notes()),
    )


def check_fits(plan: Plan, gpu_gb: float) -> None:
    """Raises ConfigError if a GPU of `gpu_gb` is too small, with what is largest and what makes it smaller."""
    if plan.needed <= gpu_gb * GB:
        return
    part = max(DEVICE_PARTS, key=lambda name: getattr(plan.memory, name))
    raise ConfigError(
        f"this run needs {plan.needed / GB:.1f} GB per GPU (predicted) and there are {gpu_gb:g}; the largest part is "
        f"{part} with {getattr(plan.memory, part) / GB:.1f} GB. Less is needed with learn.checkpoint_activations=true, "
        "a smaller sampler.max_context and learn.tokens_per_micro_batch, learn.offload=true or a smaller learn.rank"
    )


def plan_text(plan: Plan, config: Config, *, ranks: int, gpu_gb: float) -> str:
    """The plan in words, for a person."""
    return "\n".join(_lines(plan, config, ranks, gpu_gb))


def dry_run(config: Config, *, ranks: int, gpu_gb: float) -> str:
    """Load what a run loads, but for the weights, and say what it comes to. Raises MappaError for what cannot run."""
    from mappa.run import learn_settings
    from mappa.systems import team_of
    from mappa.tasks import prepare

    learn = learn_settings(config)
    plan = make_plan(config, learn, team_of(config), prepare(config.tasks, cache_home()), ranks=ranks)
    check_fits(plan, gpu_gb)
    return plan_text(plan, config, ranks=ranks, gpu_gb=gpu_gb)


def model_shape(name: str) -> tuple[ModelShape, str]:
    """The sizes of a model, and a note where they come from mappa's own table because the model cannot be read here."""
    from transformers import AutoConfig

    from mappa.model import smollm2

    folder = str(smollm2.smollm2_folder(cache_home())) if name == smollm2.NAME else name
    try:
        return ModelShape.of(AutoConfig.from_pretrained(folder)), ""
    except (OSError, ValueError) as error:
        if name.lower() in KNOWN:
            return KNOWN[name.lower()], f"{name} cannot be read here: its sizes are taken from mappa's table"
        raise ConfigError(f"the sizes of {name!r} cannot be read: {str(error).splitlines()[0]}") from error


def check_lengths(config: Config, system: System) -> None:
    """Raises ConfigError where a context leaves nothing to write or cannot be learned from."""
    context, budget = config.sampler.max_context, config.learn.tokens_per_micro_batch
    for role in system.roles:
        if role.plays and role.max_tokens >= context:
            raise ConfigError(
                f"role {role.name!r} may write {role.max_tokens} tokens, which leaves nothing of sampler.max_context="
                f"{context} for what it reads; set sampler.max_context higher"
            )
    if budget < context:
        raise ConfigError(
            f"learn.tokens_per_micro_batch={budget} cannot hold the longest action, sampler.max_context={context}: "
            "an action is never split"
        )


def _coach_prices(config: Config) -> tuple[float, float] | None:
    """Dollars per million tokens read and written; None for a coach that costs nothing."""
    kind: str = config.coach.kind
    chat: Any = getattr(config.coach, "chat", None)
    if kind == "rubric" or chat is None:
        return None
    return chat.dollars_in, chat.dollars_out


def _lines(plan: Plan, config: Config, ranks: int, gpu_gb: float) -> Iterator[str]:
    yield from plan.notes
    yield f"tasks: {plan.train_tasks} to learn from, {plan.heldout_tasks} to measure on"
    yield (
        f"an epoch: {plan.episodes} episodes in {plan.steps:.1f} steps; the run: {config.steps} steps, "
        f"{plan.epochs:.1f} epochs"
    )
    yield (
        f"tokens of an epoch, at most: {plan.generated / 1e6:.1f} M generated in {plan.actions} actions, "
        f"{plan.read / 1e6:.1f} M of context"
    )
    if plan.dollars is None:
        yield "coach: costs nothing"
    else:
        yield f"coach of an epoch, at most: {plan.coach_tokens / 1e6:.1f} M tokens, {plan.dollars:.2f} dollars"
    yield f"memory per GPU of a training step on {ranks} GPUs, predicted, in GB:"
    for name in DEVICE_PARTS:
        size = getattr(plan.memory, name)
        if size:
            yield f"  {name:<12} {size / GB:7.2f}"
    yield f"  {'together':<12} {plan.memory.total / GB:7.2f}"
    if plan.server:
        yield f"  {'server':<12} {plan.server / GB:7.2f}  (its copy of the base)"
    sequences = math.floor((gpu_gb * GB - plan.memory.total - plan.server) / plan.sequence)
    yield (
        f"of {gpu_gb:g} GB per GPU, {(gpu_gb * GB - plan.memory.total - plan.server) / GB:.1f} GB are left: keys and "
        f"values of {sequences} sequences of {config.sampler.max_context} tokens"
    )
    yield "not counted: the CUDA context, what the allocator keeps unused"
