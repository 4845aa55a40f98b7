"""What is measured: the learner, the usual way with PEFT, TRL's GRPOTrainer, and the head on its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from bench.parts.learner_batches import roles_of
from mappa.config import LearnConfig
from mappa.learn.learner import Learner
from mappa.learn.packing import pack
from mappa.types import Sample
from mappa_kernels import linear_logprob, policy_loss

logging.disable_progress_bar()
logging.set_verbosity_error()
RANK, ALPHA, LR = 16, 32, 1e-5
TARGETS = LearnConfig().targets


class TinyModel:
    """Writes the random model of the tests, with a vocabulary of another size if need be. There is nothing to run."""

    def __init__(self, folder: str, vocabulary: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        tiny = import_module("tests.tiny")
        LlamaForCausalLM(LlamaConfig(**{**tiny.SHAPE, "vocab_size": vocabulary})).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)


class Ours:
    """One `Learner`; `budget` packed tokens go through at once, where it is not the default number. With `recompute`,
    activations are not kept but computed again."""

    def __init__(
        self, model: str, dtype: str, samples: Sequence[Sample], budget: int = 2048, recompute: bool = False
    ) -> None:
        config = settings(model, dtype, roles_of(samples), budget)
        self.learner = Learner(replace(config, checkpoint_activations=recompute))
        self.samples = samples
        self.learner.logprobs(samples[:1])

    def run(self) -> dict[str, Any]:
        report = self.learner.step(self.samples)
        weights = next(iter(self.learner.adapters.values())).values()
        return {
            "trained": report.tokens_trained,
            "computed": report.tokens_computed,
            "unshared": report.tokens_unshared,
            "seconds": report.seconds,
            "parameters_per_role": sum(part.numel() for pair in weights for part in pair),
        }


class LargestTensor(Ours):
    """Elements of the largest tensor with a dimension of the vocabulary that an operation of a step returns."""

    def run(self) -> dict[str, float]:
        config, base = self.learner.config, self.learner.base
        with _Watch(base.vocabulary) as watch:
            super().run()
        rows = sum(len(batch.targets) for batch in pack(self.samples, config.roles, config.tokens_per_micro_batch))
        return {"largest": watch.largest, "logits": rows * base.vocabulary, "head": base.head.numel()}


class UsualWay:
    """PEFT with an adapter per role, role by role, one document at a time, log-softmax over all logits."""

    def __init__(self, model: str, dtype: str, samples: Sequence[Sample]) -> None:
        from peft import get_peft_model

        first, *others = roles_of(samples)
        self.samples = samples
        self.model = get_peft_model(_plain_model(model, dtype), _lora(), adapter_name=first)
        for role in others:
            self.model.add_adapter(role, _lora())
        self.model.train()
        self.optimizers = {}
        for role in (first, *others):
            self.model.set_adapter(role)
            weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            self.optimizers[role] = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
        self._loss(samples[0], 1).backward()
        self.optimizers[samples[0].role].zero_grad()

    def run(self) -> dict[str, float]:
        tokens = sum(len(sample.logprobs) for sample in self.samples)
        for role, optimizer in self.optimizers.items():
            self.model.set_adapter(role)
            for sample in self.samples:
                if sample.role == role:
                    self._loss(sample, tokens).backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {"trained": tokens}

    def _loss(self, sample: Sample, tokens: int) -> Tensor:
        ids = torch.tensor(sample.tokens)[None]
        logits = self.model(input_ids=ids, use_cache=False).logits
        return eager_loss(logits[0, :-1], ids[0, 1:], sample.spans[0][0] - 1, sample.rewards[0], tokens)


class Trl:
    """GRPOTrainer on completions it is given: `train()` is then its training part alone.

    Left at TRL's defaults (beta is 0) but for what the comparison sets: one update from the whole batch, one prompt's
    completions going through together, and, where `checkpointing` is False, no recomputation of activations.
    """

    def __init__(self, model: str, dtype: str, samples: Sequence[Sample], checkpointing: bool) -> None:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # says that rollout_func may change
        from transformers import AutoTokenizer
        from transformers.trainer_callback import PrinterCallback

        trl, datasets = import_module("trl"), import_module("datasets")
        prompts = list(dict.fromkeys(sample.group for sample in samples))
        each = len(samples) // len(prompts)
        rewards = [sample.rewards[0] for sample in samples]
        self.tokens = sum(len(sample.logprobs) for sample in samples)
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = trl.GRPOTrainer(
            model=_plain_model(model, dtype),
            reward_funcs=lambda completions, **_: rewards,
            args=trl.GRPOConfig(
                output_dir=self.folder.name,
                per_device_train_batch_size=each,
                gradient_accumulation_steps=len(prompts),
                num_generations=each,
                max_completion_length=max(len(sample.logprobs) for sample in samples),
                max_steps=1,
                learning_rate=LR,
                beta=0.0,
                bf16=dtype == "bfloat16",
                gradient_checkpointing=checkpointing,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                shuffle_dataset=False,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=_lora(),
            rollout_func=_replay(samples),
        )
        self.trainer.remove_callback(PrinterCallback)

    def run(self) -> dict[str, float]:
        result = self.trainer.train()
        return {"trained": self.tokens, "loss": result.training_loss}


class OurHead:
    """lm_head and loss as the learner does them: on scored rows, micro-batch by micro-batch, forward and backward."""

    def __init__(self, model: str, dtype: str, samples: Sequence[Sample]) -> None:
        self.head = _plain_model(model, dtype).lm_head.weight.detach()
        config = settings(model, dtype, roles_of(samples))
        self.batches = pack(samples, config.roles, config.tokens_per_micro_batch)
        self.hidden = torch.randn(config.tokens_per_micro_batch, self.head.shape[1]).to(self.head.dtype)
        self._one(self.batches[0])

    def run(self) -> dict[str, float]:
        for batch in self.batches:
            self._one(batch)
        return {"trained": sum(len(batch.pick) for batch in self.batches)}

    def _one(self, batch: Any) -> None:
        hidden = self.hidden[: len(batch.targets)].detach().requires_grad_()
        logprob, entropy = linear_logprob(hidden, self.head, batch.targets, entropy=True)
        picked = logprob[batch.pick]
        loss = policy_loss(picked, picked.detach(), torch.ones_like(picked), entropy=entropy).loss
        loss.backward()


class EagerHead:
    """The same eagerly, document by document: on every token, as the usual way does, or on scored rows alone."""

    def __init__(self, model: str, dtype: str, samples: Sequence[Sample], scored_only: bool) -> None:
        self.head = _plain_model(model, dtype).lm_head.weight.detach()
        self.samples, self.scored_only = samples, scored_only
        self.hidden = torch.randn(max(len(s.tokens) for s in samples), self.head.shape[1]).to(self.head.dtype)
        self._one(samples[0])

    def run(self) -> dict[str, float]:
        for sample in self.samples:
            self._one(sample)
        return {"trained": sum(len(sample.logprobs) for sample in self.samples)}

    def _one(self, sample: Sample) -> None:
        start = sample.spans[0][0] - 1
        first = start if self.scored_only else 0
        hidden = self.hidden[first : len(sample.tokens) - 1].detach().requires_grad_()
        targets = torch.tensor(sample.tokens[first + 1 :])
        eager_loss(F.linear(hidden, self.head), targets, start - first, 1.0, 1).backward()


def settings(model: str, dtype: str, roles: tuple[str, ...], budget: int = 2048) -> LearnConfig:
    """The learner's configuration in every measurement."""
    return LearnConfig(
        model=model,
        dtype=dtype,  # type: ignore[arg-type]
        roles=roles,
        rank=RANK,
        alpha=ALPHA,
        lr=LR,
        beta=0.0,
        tokens_per_micro_batch=budget,
    )


def eager_loss(logits: Tensor, targets: Tensor, first: int, advantage: float, tokens: int) -> Tensor:
    """PPO from all logits [T, V]; the action begins at row `first`."""
    logprob = logits.float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)[first:]
    ratio = (logprob - logprob.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum() / tokens


def _plain_model(folder: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")


def _replay(samples: Sequence[Sample]) -> Callable[[list[str], Any], dict[str, object]]:
    """A rollout that returns the samples' tokens: the trainer asks for each prompt as often as it has completions."""

    def rollout(prompts: list[str], trainer: Any) -> dict[str, object]:
        assert prompts == [sample.group for sample in samples]
        return {
            "prompt_ids": [list(sample.tokens[: sample.spans[0][0]]) for sample in samples],
            "completion_ids": [list(sample.tokens[sample.spans[0][0] :]) for sample in samples],
            "logprobs": None,
        }

    return rollout


class _Watch(TorchDispatchMode):
    """Sees every operation's results, the backward pass's too."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.dimension, self.largest = dimension, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and self.dimension in value.shape:
                self.largest = max(self.largest, value.numel())
        return result
