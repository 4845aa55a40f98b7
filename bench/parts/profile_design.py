"""Who does what on which GPU: a config's own design, the published one, and what each GPU's memory holds."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from bench.parts.profile_learner import Batching
from bench.parts.profile_node import Node, kv_bytes
from mappa.config import Config, LearnConfig
from mappa.dryrun import check_lengths
from mappa.errors import ConfigError
from mappa.learn.memory import DEVICE_PARTS, GB, MemorySettings, adapter_elements, predict
from mappa.learn.shape import ModelShape
from mappa.run import learn_settings
from mappa.systems import System, adapters_of

Roles = tuple[str, ...]
"""Adapters; none: all."""


class Design(Struct, frozen=True, kw_only=True):
    """Where servers and learners are, and how far they overlap."""

    name: str
    gpus: int
    """That it uses."""
    serving: tuple[tuple[int, Roles], ...]
    """Each server's GPU, and whom it serves."""
    learners: tuple[tuple[tuple[int, ...], Roles], ...]
    """Each learner's GPUs, and whom it trains. One that trains several does so in one step."""
    staleness: int
    tokens_in_flight: int
    micro_tokens: int
    batching: Batching = "shared"
    inline: bool = False
    """An episode waits for every verdict before it goes on."""
    full: bool = False
    """Full weights instead of adapters over one base."""


def design_of(config: Config, node: Node, ranks: int, name: str = "") -> Design:
    """What a config does under `torchrun --nproc-per-node=ranks`. Ranks take GPUs from 0 on. Raises ConfigError."""
    if ranks > node.gpus:
        raise ConfigError(f"--ranks {ranks}: the node has {node.gpus} GPUs")
    servers = _servers(config, node)
    return Design(
        name=name or f"{placement(servers, ranks)}, staleness {config.rollout.max_staleness}",
        gpus=node.gpus,
        serving=tuple((gpu, ()) for gpu in servers),
        learners=((tuple(range(ranks)), ()),),
        staleness=config.rollout.max_staleness,
        tokens_in_flight=config.rollout.tokens_in_flight,
        micro_tokens=config.learn.tokens_per_micro_batch,
    )


def _servers(config: Config, node: Node) -> tuple[int, ...]:
    if config.sampler.kind == "local":
        return (0,)  # rank 0 generates, the others wait
    settings = config.sampler.sglang
    if settings.tp > 1 or settings.urls:
        raise ConfigError("profile: servers of several GPUs (tp) or of another machine (urls) are not simulated")
    gpus = settings.gpus or (0,)
    if max(gpus) >= node.gpus:
        raise ConfigError(f"sampler.sglang.gpus={list(gpus)}: the node has GPUs 0 to {node.gpus - 1}")
    return gpus


def placement(servers: Sequence[int], ranks: int) -> str:
    """In the words of DESIGN.md where it has some."""
    if set(servers) == set(range(ranks)):
        return "colocated"
    if not set(servers) & set(range(ranks)):
        return f"split, {len(servers)} serve and {ranks} learn"
    return f"servers on GPUs {', '.join(map(str, servers))}, learner on {ranks}"


def overlapped(config: Config, servers: Sequence[int], staleness: int = 1) -> list[str]:
    """The settings under which servers on these GPUs work while the learner learns, and nothing holds episodes back."""
    tokens = (1 + staleness) * config.rollout.episodes * config.sampler.max_context
    return [
        "sampler.kind=sglang",
        f"sampler.sglang.gpus={list(servers)}",
        f"rollout.max_staleness={staleness}",
        f"rollout.tokens_in_flight={tokens}",
    ]


def published(config: Config, system: System, node: Node) -> Design:
    """Full weights, two engines and two GPUs for each agent, a barrier after each step, the coach waited for after each
    action, padded micro-batches. Fewer GPUs for each where the node has not so many."""
    agents = adapters_of(system)
    each = min(2, node.gpus // len(agents))
    if not each:
        raise ConfigError(f"the published design needs a GPU for each of {len(agents)} agents; there are {node.gpus}")
    own = {agent: tuple(range(place * each, (place + 1) * each)) for place, agent in enumerate(agents)}
    return Design(
        name="published",
        gpus=each * len(agents),
        serving=tuple((gpu, (agent,)) for agent, gpus in own.items() for gpu in gpus),
        learners=tuple((gpus, (agent,)) for agent, gpus in own.items()),
        staleness=0,
        tokens_in_flight=2 * config.rollout.episodes * config.sampler.max_context,
        micro_tokens=config.learn.tokens_per_micro_batch,
        batching="padded",
        inline=True,
        full=True,
    )


def causes(config: Config, system: System, node: Node, ours: Design) -> list[tuple[str, Design]]:
    """From the published design to `ours`, a cause at a time: (what is new, design)."""
    first = published(config, system, node)
    flight = replace(
        first, tokens_in_flight=(1 + ours.staleness) * config.rollout.episodes * config.sampler.max_context
    )
    return [
        ("published", first),
        ("overlap", replace(flight, name="+ overlap", staleness=ours.staleness, inline=False)),
        ("one base", replace(ours, name="+ one base", batching="padded")),
        ("packing", replace(ours, name="+ packing", batching="packed")),
        ("sharing", replace(ours, name=f"ours ({ours.name})")),
    ]


def memory(config: Config, shape: ModelShape, node: Node, design: Design, gpu: int) -> dict[str, float]:
    """Predicted bytes of a GPU by part; `KV` is what a server has left for keys and values, negative where it has none.
    Raises ConfigError."""
    settings = learn_settings(config)
    parts: dict[str, float] = {}
    for gpus, roles in design.learners:
        if gpu in gpus:
            parts |= _learner_bytes(replace(settings, roles=roles or settings.roles), shape, design, len(gpus))
    if any(gpu == place for place, _ in design.serving):
        parts["server base"] = 2 * sum(shape.tensors)
        if not design.full:
            wanted = MemorySettings.of(settings, dtype="bfloat16", world_size=1)
            parts["server adapters"] = 2 * 2 * wanted.roles * adapter_elements(shape, wanted)  # bf16, two versions
        parts["server scratch"] = node.server_scratch
        parts["KV"] = node.memory * node.usable - sum(parts.values())
    return parts


def _learner_bytes(config: LearnConfig, shape: ModelShape, design: Design, ranks: int) -> dict[str, float]:
    settings = MemorySettings.of(config, dtype="bfloat16", world_size=ranks)
    settings = replace(settings, tokens=design.micro_tokens)
    predicted = predict(shape, settings)
    if not design.full:
        return {f"learner {part}": getattr(predicted, part) for part in DEVICE_PARTS if getattr(predicted, part)}
    elements = sum(shape.tensors)
    return {
        "learner states": 16 * elements / ranks,  # bf16 weights and gradients, fp32 masters and two moments
        "learner reference": 2 * elements / ranks,
        "learner gathered": 2 * max(shape.tensors),
        "learner passes": predicted.activations + predicted.recomputed + predicted.logprob + predicted.workspace,
    }


def kv_room(config: Config, system: System, shape: ModelShape, node: Node, design: Design) -> int:
    """Tokens whose keys and values every server has room for. Raises ConfigError where a GPU is too small for the
    learner, or a server for the longest sequence, and for settings that no run accepts."""
    check_lengths(replace(config, learn=replace(config.learn, tokens_per_micro_batch=design.micro_tokens)), system)
    room = []
    for gpu in range(design.gpus):
        parts = memory(config, shape, node, design, gpu)
        left = parts.pop("KV", None)
        limit = node.memory * node.usable
        if sum(parts.values()) > limit:
            largest = max(parts, key=lambda name: parts[name])
            raise ConfigError(
                f"GPU {gpu} needs {sum(parts.values()) / GB:.1f} GB (predicted) and has {limit / GB:.1f}; the largest "
                f"part is {largest} with {parts[largest] / GB:.1f} GB"
            )
        if left is not None:
            room.append(int(left / kv_bytes(shape)))
    if min(room) < config.sampler.max_context:
        raise ConfigError(
            f"a server has room for keys and values of {min(room)} tokens (predicted), and "
            f"sampler.max_context={config.sampler.max_context}"
        )
    return min(room)
