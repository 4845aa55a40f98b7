"""Loading a base model, and refusing what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mappa.errors import ModelError
from mappa.model.base import choose_dtype, load_base
from mappa.types import Message
from tests.tiny import write_tiny_model


def test_a_folder_loads_frozen_and_knows_its_chat(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), "float32")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    ids = base.prompt_ids([Message("system", "Be short."), Message("user", "Hi")])
    assert base.tokenizer.decode(ids) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert base.text((*ids[-3:], 1)) == base.tokenizer.decode(ids[-3:])
    assert base.end_ids == {1}


def test_weights_laid_out_for_small_batches_are_the_same_weights(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, plain = load_base(str(tiny_model), "float32"), AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, base.model.state_dict()[name])


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such/folder"])
def test_a_missing_folder_is_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(ModelError, match=r"no model folder at .*smollm2-135m-instruct"):
        load_base(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load a base model"):
        load_base(str(tmp_path))


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", chat=False)
    with pytest.raises(ModelError, match="no chat template"):
        load_base(str(folder))


def test_a_model_without_an_end_token_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    for name, keys in {"generation_config.json": ["eos_token_id"], "tokenizer_config.json": ["eos_token"]}.items():
        settings = json.loads((folder / name).read_text())
        for key in keys:
            settings.pop(key, None)
        (folder / name).write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    with pytest.raises(ModelError, match="end-of-text"):
        load_base(str(folder))


def test_dtype_by_name_and_by_machine() -> None:
    assert choose_dtype("bfloat16") == torch.bfloat16
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)
