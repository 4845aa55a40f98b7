"""Loading a frozen base model: a local folder, a hub name, or the one that comes from a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mappa.config import cache_home
from mappa.errors import ModelError
from mappa.model import smollm2
from mappa.model.attention import PLAN_ATTENTION
from mappa.types import Message


class Base:
    """A frozen decoder with its tokenizer.

    `model` is the causal LM; `decoder` its body, with `embed_tokens`, `layers`, `norm` and `rotary_emb` as in the
    Llama and Qwen families; `head` the [vocabulary, hidden] output weight. Attention is done by the plan that a
    forward pass is given (see `mappa.model.attention`).
    """

    def __init__(self, model: Any, tokenizer: Any, path: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.path = path
        self.decoder = model.model
        self.head: torch.Tensor = model.lm_head.weight
        self.dtype: torch.dtype = self.head.dtype
        self.vocabulary: int = self.head.shape[0]
        self.end_ids: frozenset[int] = _end_ids(model, tokenizer)

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Token ids of a chat, up to and including the header of the assistant's turn."""
        chat = [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def continued_ids(self, context: tuple[int, ...], messages: list[Message]) -> tuple[int, ...]:
        """`context`, which ends with what the assistant wrote, as it is; then the end of its turn, `messages` and the
        header of its next turn, as the chat template writes them.

        Templates that leave reasoning out of past turns are not asked to: the context stays what the model saw. Raises
        ModelError for a template that does not show an assistant's text at all.
        """
        place = "f3b1-what-was-written-9c07"
        chat = [{"role": "user", "content": "."}, {"role": "assistant", "content": place}]
        chat += [{"role": message.role, "content": message.content} for message in messages]
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        _, found, rest = text.partition(place)
        if not found:
            raise ModelError(
                f"the chat template of {self.path!r} leaves past answers out; roles cannot go on from them"
            )
        new = tuple(self.tokenizer(rest, add_special_tokens=False)["input_ids"])
        ended = bool(context) and context[-1] in self.end_ids and new[:1] == context[-1:]
        return context + (new[1:] if ended else new)

    def output_ids(self, prompt: tuple[int, ...], text: str, ended: bool) -> tuple[int, ...]:
        """Token ids of `text` as the assistant's turn behind `prompt`, which it ends itself where `ended`. For texts
        that no model sampled: what was sampled is never tokenised again."""
        ids = tuple(self.tokenizer(text.removeprefix(self.opening(prompt)), add_special_tokens=False)["input_ids"])
        return (*ids, min(self.end_ids)) if ended else ids

    def text(self, ids: tuple[int, ...]) -> str:
        """What was written, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def opening(self, prompt: tuple[int, ...]) -> str:
        """`<think>` where the template itself opened the reasoning that the model then goes on with, else nothing."""
        return "<think>" if self.text(prompt[-16:]).rstrip().endswith("<think>") else ""


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of the frozen base. `auto` is bfloat16 only where the machine multiplies it natively: emulated
    bfloat16 was measured four times slower than float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if torch.cuda.is_available():
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_base(name: str, dtype: str = "auto") -> Base:
    """Load `name` frozen, in evaluation mode, on the CPU. Raises ModelError with what is missing and how to get it."""
    folder = str(smollm2.smollm2_folder(cache_home())) if name == smollm2.NAME else name
    if ("/" not in folder or folder.startswith((".", "/"))) and not Path(folder).is_dir():
        raise ModelError(f"no model folder at {folder!r}; give a local folder, a hub name, or {smollm2.NAME!r}")
    model, tokenizer = _load(folder, choose_dtype(dtype))
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the tokenizer of {name!r} has no chat template; use an instruct model or add the template")
    for part in ("embed_tokens", "layers", "norm", "rotary_emb"):
        if not hasattr(getattr(model, "model", None), part):
            raise ModelError(f"{name!r} ({type(model).__name__}) has no model.{part}; mappa runs Llama-like decoders")
    model.requires_grad_(False)
    model.eval()
    _favour_small_batches(model.model)
    return Base(model, tokenizer, folder)


def _load(folder: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would fill a log with the loading of one small file
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=PLAN_ATTENTION)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load a base model from {folder!r}: {first}") from error
    return model, tokenizer


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = ends if ends is not None else tokenizer.eos_token_id
    if ends is None:
        raise ModelError("the base model names no end-of-text token; set eos_token_id in its generation_config.json")
    return frozenset([ends] if isinstance(ends, int) else ends)


def _favour_small_batches(decoder: nn.Module) -> None:
    """Lay float32 linear weights out input-major on the CPU (same shape, other strides).

    With few rows, as in decoding, the BLAS kernel for that layout was measured 2-3 times faster at 8-48 rows and
    equal for large batches.
    """
    for module in decoder.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight.dtype == torch.float32
            and module.weight.device.type == "cpu"
        ):
            module.weight.data = module.weight.data.t().contiguous().t()
