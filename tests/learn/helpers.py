"""Samples and a single-process reference for the learner: fp32, unpacked, plain autograd and AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from mappa.config import LearnConfig
from mappa.learn.optimizer import learning_rate
from mappa.model.attention import TreePlan, decode_layers
from mappa.model.base import load_base
from mappa.model.lora import add_roles, new_adapter
from mappa.types import Sample

ROLES = ("engineer", "modeler", "analyst")


def make_samples(step: int, roles: Sequence[str] = ROLES, each: int = 4) -> list[Sample]:
    """Samples of a step, always the same: per role a shared beginning, then a task's own, then an action."""
    samples = []
    for role in roles:
        generator = torch.Generator().manual_seed(hash_of(role))
        shared = torch.randint(2, 260, (30,), generator=generator).tolist()
        generator = torch.Generator().manual_seed(1000 * step + hash_of(role))
        for index in range(each):
            own = torch.randint(2, 260, (4 + index,), generator=generator).tolist()
            action = torch.randint(2, 260, (6 + 3 * index,), generator=generator).tolist()
            logprobs = (-5 + torch.rand(len(action), generator=generator)).tolist()
            reward = float(torch.rand((), generator=generator))
            start = len(shared) + len(own)
            samples.append(
                Sample(
                    role=role,
                    tokens=(*shared, *own, *action),
                    spans=((start, start + len(action)),),
                    logprobs=tuple(logprobs),
                    rewards=(reward,),
                    source=f"{step}-{role}-{index}",
                )
            )
    return samples


def hash_of(text: str) -> int:
    return sum(ord(character) * 31**i for i, character in enumerate(text)) % 100_000


class Reference:
    """The update written down as plainly as it can be: one sample at a time, everything through autograd."""

    def __init__(self, folder: Path, config: LearnConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.steps = config, total_steps, 0
        self.base = load_base(str(folder), "float32")
        self.router, layers = add_roles(self.base.model, config.targets, config.first_layer, config.alpha / config.rank)
        generator = torch.Generator().manual_seed(config.seed)
        self.adapters = {role: new_adapter(layers, config.rank, generator) for role in config.roles}
        self.optimizers = {
            role: torch.optim.AdamW(
                [p for pair in adapter.values() for p in pair],
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                weight_decay=config.weight_decay,
            )
            for role, adapter in self.adapters.items()
        }

    def logprobs(self, sample: Sample, *, adapted: bool) -> torch.Tensor:
        ids = torch.tensor(sample.tokens)
        adapters = [self.adapters[sample.role]] if adapted else []
        with self.router.route(adapters, [0, len(ids)] if adapted else [0]):
            hidden = decode_layers(
                self.base.decoder,
                self.base.decoder.embed_tokens(ids)[None],
                torch.arange(len(ids)),
                TreePlan([len(ids)], [-1]),
            )
        (start, end), *_ = sample.spans
        logits = F.linear(self.base.decoder.norm(hidden[0, start - 1 : end - 1]), self.base.head)
        return torch.log_softmax(logits, -1).gather(1, ids[start:end, None])[:, 0]

    def step(self, samples: Sequence[Sample]) -> None:
        config, returns = self.config, []
        for sample in samples:
            with torch.no_grad():
                kl = torch.tensor(sample.logprobs) - self.logprobs(sample, adapted=False)
            r = -config.beta * kl
            r[-1] += sample.rewards[0]
            returns.append(r.flip(0).cumsum(0).flip(0))
        advantages: list[torch.Tensor] = []
        for sample, own in zip(samples, returns, strict=True):
            group = torch.cat([r for s, r in zip(samples, returns, strict=True) if s.role == sample.role])
            advantages.append((own - group.mean()) / group.std(correction=0))
        tokens = sum(len(a) for a in advantages)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        for sample, advantage in zip(samples, advantages, strict=True):
            ratio = (self.logprobs(sample, adapted=True) - torch.tensor(sample.logprobs)).exp()
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).sum() / tokens
            loss.backward()
        rate = learning_rate(
            self.steps,
            self.total_steps,
            peak=config.lr,
            final=config.lr_final,
            warmup=config.warmup,
            schedule=config.schedule,
        )
        for role in {sample.role for sample in samples}:
            parameters = [p for pair in self.adapters[role].values() for p in pair]
            if config.clip_norm:
                norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None))
                if norm > config.clip_norm:
                    for p in parameters:
                        assert p.grad is not None
                        p.grad.mul_(config.clip_norm / (norm + 1e-6))
            for group in self.optimizers[role].param_groups:
                group["lr"] = rate
            self.optimizers[role].step()
        self.steps += 1


def relative_error(adapters: dict, reference: dict) -> float:
    """Largest over roles of |ours - reference| / |reference|, over all weights of the role."""
    worst = 0.0
    for role in reference:
        ours = torch.cat([p.detach().flatten() for pair in adapters[role].values() for p in pair])
        theirs = torch.cat([p.detach().flatten() for pair in reference[role].values() for p in pair])
        worst = max(worst, float((ours - theirs).norm() / theirs.norm()))
    return worst
