"""A tiny random model with a real tokenizer and chat template, made on the fly in well under two seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 1,
}


def write_tiny_model(folder: Path, *, family: str = "llama", chat: bool = True, seed: int = 0, **shape: int) -> Path:
    """A Hugging Face folder: byte tokens, three layers, grouped key/value heads."""
    torch.manual_seed(seed)
    if family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE | shape, head_dim=16))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE | shape))
    for parameter in model.parameters():  # sharper than the usual start, so that wrong contexts show
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder


def tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    if chat:
        fast.chat_template = CHAT
    return fast
