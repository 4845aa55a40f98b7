"""What a node of GPUs can do: rates from data sheets, and the shares of them that programs reach.

Seconds of prefill and decoding are a roofline: the slower of arithmetic (FLOPs over the reached share of the peak) and
memory traffic (weights once per step for all rows, every row's keys and values), and what the host adds. The constants
were chosen from what is published of such programs before any result of the simulator was seen; none was measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from mappa.errors import ConfigError
from mappa.learn.shape import ModelShape


def _doc(text: str) -> Meta:
    return Meta(description=text, gt=0)


class Node(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """8 x H100 SXM. Each number can be set with --node KEY=VALUE."""

    gpus: Annotated[int, _doc("GPUs of the node")] = 8
    flops: Annotated[float, _doc("FLOP/s of a GPU, dense bf16: data sheet of the H100 SXM")] = 989.4e12
    hbm: Annotated[float, _doc("bytes/s of a GPU's memory: data sheet")] = 3.35e12
    nvlink: Annotated[float, _doc("bytes/s between GPUs, each direction: half of the data sheet's 900 GB/s")] = 450e9
    memory: Annotated[float, _doc("bytes of a GPU's memory")] = 80e9
    dollars: Annotated[float, _doc("price of a GPU-hour: an assumption, offers lie between 2 and 4")] = 3.0
    usable: Annotated[float, _doc("share of memory left by CUDA contexts, graphs and fragmentation")] = 0.92
    server_scratch: Annotated[float, _doc("bytes a server needs beside base, adapters, keys and values")] = 2e9
    prefill_share: Annotated[float, _doc("share of FLOP/s in prefill: servers report 0.4 to 0.6 at this size")] = 0.5
    decode_share: Annotated[float, _doc("share of FLOP/s in decoding, which matters at large batches only")] = 0.5
    decode_hbm_share: Annotated[float, _doc("share of memory bandwidth in decoding: 0.6 to 0.8 are reported")] = 0.65
    decode_overhead: Annotated[
        float, _doc("seconds a decoding step takes besides: scheduling, sampling, log-probs, with CUDA graphs")
    ] = 1.5e-3
    prefill_overhead: Annotated[float, _doc("seconds a prefill takes besides")] = 0.01
    lora_decode: Annotated[
        float, _doc("decoding with several adapters takes so many times as long: 1.1 to 1.3 are reported")
    ] = 1.2
    lora_prefill: Annotated[float, _doc("prefill with several adapters takes so many times as long")] = 1.1
    learn_share: Annotated[
        float, _doc("share of FLOP/s in training, recomputation counted as work: 0.35 to 0.45 are usual at this size")
    ] = 0.4
    pass_overhead: Annotated[float, _doc("seconds a micro-batch takes besides: launches, plans, copies")] = 0.05
    nvlink_share: Annotated[float, _doc("share of NVLink's rate in collectives: 0.7 to 0.8 are usual")] = 0.7
    host: Annotated[float, _doc("bytes/s of an adapter through /dev/shm: written, checked, read by a server")] = 1e9
    publish_overhead: Annotated[float, _doc("seconds of a publication besides: load calls, one canary per role")] = 0.5


def node_from(settings: Sequence[str]) -> Node:
    """The node with `key=value` settings. Raises ConfigError."""
    raw: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            raw[key] = int(value) if key == "gpus" else float(value)
        except ValueError:
            raise ConfigError(f"--node {setting}: expected KEY=NUMBER") from None
    try:
        return msgspec.convert({**msgspec.to_builtins(Node()), **raw}, Node)
    except msgspec.ValidationError as error:
        known = ", ".join(Node.__struct_fields__)
        raise ConfigError(f"--node: {error}; known: {known}") from None


class Cost(Protocol):
    """Seconds that a server needs."""

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        """For prompts of (tokens, of these in the cache), computed together."""
        ...

    def decode(self, rows: int, context: float) -> float:
        """For one token of each of `rows` sequences that hold `context` tokens together."""
        ...


class Work(Struct, frozen=True):
    """Forward passes over tokens. Floating-point operations follow from it and a ModelShape."""

    tokens: float = 0.0
    pairs: float = 0.0
    """(token, token it attends to), itself included."""
    scored: float = 0.0
    """Tokens whose logits are computed."""

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.scored + other.scored)


def prompt_work(tokens: int, cached: int = 0) -> Work:
    """What prefill computes of a prompt whose first `cached` tokens are known."""
    return Work(tokens - cached, (tokens * (tokens + 1) - cached * (cached + 1)) / 2, 1)


def linear_elements(shape: ModelShape) -> int:
    """Elements of the matrices that every token is multiplied with, output head left out."""
    return shape.layers * sum(i * o for i, o in shape.linears.values())


def forward_flops(shape: ModelShape, work: Work) -> float:
    """Of one forward pass: 2 per element and token, 4 · heads · head_dim per attended pair and layer, the logits."""
    attention = 4 * shape.layers * shape.heads * shape.head_dim * work.pairs
    return 2 * linear_elements(shape) * work.tokens + attention + 2 * shape.vocabulary * shape.hidden * work.scored


def kv_bytes(shape: ModelShape, element: int = 2) -> int:
    """Bytes of one token's keys and values."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * element


class GpuCost(Struct, frozen=True):
    """A server with a bf16 base on one GPU of a node. `adapters`: it serves LoRA adapters, else weights of its own."""

    node: Node
    shape: ModelShape
    adapters: bool = True

    def prefill(self, prompts: Sequence[tuple[int, int]]) -> float:
        node = self.node
        work = sum((prompt_work(*prompt) for prompt in prompts), Work())
        seconds = forward_flops(self.shape, work) / (node.flops * node.prefill_share)
        return node.prefill_overhead + seconds * (node.lora_prefill if self.adapters else 1.0)

    def decode(self, rows: int, context: float) -> float:
        node, shape = self.node, self.shape
        weights = 2 * (linear_elements(shape) + shape.vocabulary * shape.hidden)
        memory = (weights + kv_bytes(shape) * context) / (node.hbm * node.decode_hbm_share)
        arithmetic = forward_flops(shape, Work(rows, context, rows)) / (node.flops * node.decode_share)
        return node.decode_overhead + max(memory, arithmetic) * (node.lora_decode if self.adapters else 1.0)
