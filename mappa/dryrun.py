"""What a run would need, before there is a machine for it: everything is loaded but the weights.

    python -m mappa.train CONFIG --dry-run --ranks 8 [--gpu-gb 80]

Memory is predicted (learn/memory.py), tokens are upper bounds from the roles' limits, dollars are a coach's at the
config's prices. A run that cannot fit is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from mappa.coach import check_roles
from mappa.config import ChatConfig, Config, LearnConfig, cache_home
from mappa.errors import ConfigError, TaskError
from mappa.learn.memory import DEVICE_PARTS, GB, Memory, MemorySettings, predict
from mappa.learn.shape import SHAPES, ModelShape
from mappa.systems import System, team_of
from mappa.tasks import TaskSet, prepare
from mappa.types import Task

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
    coaches = _paid_coaches(config)
    scored = episodes * (generated + reread)
    replies = [episodes * per_episode * coach.max_tokens for coach in coaches]
    prices = [scored * c.dollars_in + n * c.dollars_out for c, n in zip(coaches, replies, strict=True)]
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
        coach_tokens=scored * len(coaches) + sum(replies),
        dollars=sum(prices) / 1e6 if coaches else None,
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

    learn, system = learn_settings(config), team_of(config)
    check_roles(config.coach, system.roles)
    tasks, missing = _tasks(config)
    plan = make_plan(config, learn, system, tasks, ranks=ranks)
    check_fits(plan, gpu_gb)
    return missing + plan_text(plan, config, ranks=ranks, gpu_gb=gpu_gb)


def _tasks(config: Config) -> tuple[TaskSet, str]:
    """The run's tasks; where they are not there yet, as many as the config draws, and a line that says so. Raises
    TaskError where the config does not say how many."""
    try:
        return prepare(config.tasks, cache_home()), ""
    except TaskError as error:
        if not config.tasks.train_tasks:
            raise
        counted = config.tasks
        blank = [Task(id=str(n), kind="", prompt="") for n in range(counted.train_tasks + counted.heldout_tasks)]
        line = f"the tasks are NOT THERE, and the run would not begin: {error}\ncounted as the config has them:\n"
        return TaskSet(tuple(blank[: counted.train_tasks]), tuple(blank[counted.train_tasks :])), line


def model_shape(name: str) -> tuple[ModelShape, str]:
    """The sizes of a model, and a note where they come from mappa's own table because the model is not on this machine.
    Raises ConfigError for one that can be read nowhere."""
    from transformers import AutoConfig

    from mappa.model import smollm2

    folder = str(smollm2.smollm2_folder(cache_home())) if name == smollm2.NAME else name
    known = KNOWN.get(name.lower())
    try:
        return ModelShape.of(AutoConfig.from_pretrained(folder, local_files_only=known is not None)), ""
    except (OSError, ValueError) as error:
        if known is not None:
            return known, f"{name} is not on this machine: its sizes are taken from mappa's table"
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


def _paid_coaches(config: Config) -> list[ChatConfig]:
    """The endpoints that score every action."""
    coach = config.coach
    return {"llm": [coach.chat], "ensemble": list(coach.member.values())}.get(coach.kind, [])


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
        price = f"{plan.dollars:.2f} dollars" if plan.dollars else "dollars unknown: set its dollars_in and dollars_out"
        yield f"coach of an epoch, at most: {plan.coach_tokens / 1e6:.1f} M tokens, {price}"
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
