"""The sizes of base models, from which memory and work are computed without one."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from mappa.errors import LearnError


class ModelShape(Struct, frozen=True, kw_only=True):
    """The sizes of a Llama-like decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """One matrix is both embedding and output head."""
    head_norms: bool = False
    """Queries and keys are normalised per head (Qwen3)."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias (Qwen2)."""

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """From a transformers config of the Llama or Qwen families. Raises LearnError for others, and for biases."""
        kind = config.model_type
        absent = [name for name in ("intermediate_size", "num_key_value_heads") if getattr(config, name, None) is None]
        if absent:
            raise LearnError(f"no memory arithmetic for {kind!r}: its config has no {absent[0]}")
        if getattr(config, "mlp_bias", False) or (kind != "qwen2" and getattr(config, "attention_bias", False)):
            raise LearnError(f"no memory arithmetic for {kind!r} with biases; give the ModelShape by hand")
        return cls(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            head_norms=kind == "qwen3",
            qkv_bias=kind == "qwen2",
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def tensors(self) -> list[int]:
        """Elements of every parameter of the model."""
        layer = [i * o for i, o in self.linears.values()] + [self.hidden] * 2 + [self.head_dim] * (2 * self.head_norms)
        if self.qkv_bias:
            layer += [self.linears[name][1] for name in ("q_proj", "k_proj", "v_proj")]
        ends = [self.vocabulary * self.hidden] * (1 if self.tied else 2)
        return [*ends, *layer * self.layers, self.hidden]


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = False) -> ModelShape:
    return ModelShape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        tied=tied,
        head_norms=True,
    )


SHAPES = {
    "4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "8B": _qwen3(4096, 12288, 36, 32),
    "14B": _qwen3(5120, 17408, 40, 40),
    "32B": _qwen3(5120, 25600, 64, 64),
}
"""The dense Qwen3 models."""
