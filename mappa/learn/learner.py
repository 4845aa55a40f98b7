"""The learner: samples of all roles in, one update of their adapters out.

    check -> pack -> reference log-probs (adapters off) -> advantages -> forward and backward per micro-batch -> step

Per action token r_t = -beta (log pi - log pi_ref)_t, plus score / 10 at the action's last token; A_t is the sum of what
follows within the action, normalised once per group over the batch of all ranks; PPO clip, mean over all action tokens.
The loss of a rank is its sum over action tokens times the number of ranks over the GLOBAL token count, which undoes
DeepSpeed's averaging: how samples are spread over ranks and micro-batches changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mappa.config import LearnConfig
from mappa.errors import LearnError, NonFiniteError
from mappa.learn import checkpoint, ranks
from mappa.learn.adapters import write_adapter
from mappa.learn.engine import start_engine
from mappa.learn.optimizer import learning_rate
from mappa.learn.packing import MicroBatch, pack, padding
from mappa.learn.report import LearnReport, Tally
from mappa.learn.samples import action_tokens, check_samples, learnable
from mappa.model.attention import decode_layers
from mappa.model.base import Base, load_base
from mappa.model.lora import Adapter, add_roles, new_adapter
from mappa.types import Sample
from mappa_kernels import linear_logprob, policy_loss, process_advantage


class Learner:
    """Trains one LoRA adapter per role over one frozen base, with DeepSpeed.

    Works in one process without torchrun, and on every rank under torchrun. `step` is collective: every rank calls it
    with its own samples, possibly none. `steps` counts the updates done.
    """

    def __init__(
        self, config: LearnConfig, base: Base | None = None, *, temperature: float = 1.0, total_steps: int = 1000
    ) -> None:
        """`base` shares an already loaded model. `temperature` is that of the sampler whose log-probs the samples
        carry; `total_steps` is where the learning-rate schedule ends."""
        if not config.roles or len(set(config.roles)) != len(config.roles):
            raise LearnError(f"learn.roles must name at least one role, each once; it is {config.roles}")
        self.config = config
        self.base = base if base is not None else load_base(config.model, config.dtype)
        self.temperature = temperature
        self.total_steps = total_steps
        self.steps = 0
        self.router, self.layers = add_roles(
            self.base.model, config.targets, config.first_layer, config.alpha / config.rank
        )
        generator = torch.Generator().manual_seed(config.seed)
        self.adapters = {role: new_adapter(self.layers, config.rank, generator) for role in config.roles}
        self._engine, self.optimizer = start_engine(_Policy(self), self.adapters, config)

    def adapter(self, role: str) -> Adapter:
        """The role's current weights, by module name."""
        return self.adapters[role]

    def export(self, role: str, folder: str | Path) -> None:
        """Write the role's adapter as a PEFT folder."""
        write_adapter(Path(folder), self.adapters[role], self.config, len(self.base.decoder.layers))

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint (collective): adapters, optimizer moments, counters; whole or not at all."""
        checkpoint.save(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        config: LearnConfig,
        base: Base | None = None,
        *,
        temperature: float = 1.0,
        total_steps: int = 1000,
    ) -> Learner:
        """A learner that goes on where `save` left off, on any number of ranks (collective). Raises CheckpointError."""
        learner = cls(config, base, temperature=temperature, total_steps=total_steps)
        checkpoint.restore(learner, Path(folder))
        return learner

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample], *, reference: bool = False) -> list[torch.Tensor]:
        """Log-probs of each sample's action tokens under its role's adapter, or under the base alone."""
        check_samples(samples, self.config.roles, self.base.vocabulary)
        result = [torch.empty(0)] * len(samples)
        for batch in pack(samples, self.config.roles, self.config.tokens_per_micro_batch):
            values, _ = self._logprobs(batch, self._below(batch), reference=reference)
            sizes = [action_tokens(samples[i]) for i in batch.samples]
            for index, part in zip(batch.samples, values.split(sizes), strict=True):
                result[index] = part
        return result

    def step(self, samples: Sequence[Sample]) -> LearnReport:
        """One update from this rank's samples; every rank takes part.

        Raises LearnError or NonFiniteError on all ranks before anything is changed.
        """
        chosen = self._accept(samples)
        batches = pack(chosen, self.config.roles, self.config.tokens_per_micro_batch)
        below = [self._below(batch) for batch in batches]
        kl = self._kl_to_base(chosen, batches, below)
        advantages = self._advantages(chosen, kl)
        tokens = ranks.total([sum(action_tokens(s) for s in chosen if s.role == role) for role in self.config.roles])
        self._set_groups(tokens)
        if sum(tokens) == 0:
            raise LearnError("no sample of this step can be learned from: all are cut off or unscored")
        tally = Tally(self.config.roles)
        loss_scale = ranks.world_size() / sum(tokens)
        passes = max(1, ranks.maximum(len(batches)))
        for index in range(passes):
            self._engine.set_gradient_accumulation_boundary(index == passes - 1)
            if index < len(batches):
                inputs = _Inputs(batches[index], below[index], chosen, advantages, kl)
                loss = self._engine(inputs, tally) * loss_scale
            else:
                loss = self._engine(None, tally)  # every rank reduces as often as the busiest one
            self._check_finite(loss, batches[index] if index < len(batches) else None, chosen)
            self._engine.backward(loss)
        self.optimizer.norms.clear()
        self._engine.step()
        self.steps += 1
        return self._report(samples, chosen, batches, advantages, kl, tally)

    def _accept(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that can be learned from. A fault on any rank is raised on all of them."""
        fault: LearnError | None = None
        try:
            check_samples(samples, self.config.roles, self.base.vocabulary)
            chosen = [sample for sample in samples if learnable(sample, mask_truncated=self.config.mask_truncated)]
            pack(chosen, self.config.roles, self.config.tokens_per_micro_batch)
        except LearnError as error:
            fault, chosen = error, []
        ranks.raise_together(fault)
        return chosen

    @torch.no_grad()
    def _below(self, batch: MicroBatch) -> torch.Tensor:
        """Hidden states [1, T, features] at the lowest adapted layer: the same for policy and reference."""
        hidden = self.base.decoder.embed_tokens(batch.ids)[None]
        if self.config.first_layer == 0:
            return hidden
        return decode_layers(self.base.decoder, hidden, batch.positions, batch.plan(), stop=self.config.first_layer)

    def _logprobs(
        self, batch: MicroBatch, below: torch.Tensor, *, reference: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies [N] of the batch's action tokens."""
        adapters = [] if reference else [self.adapters[role] for role in self.config.roles]
        offsets = [0] if reference else batch.role_offsets
        with self.router.route(adapters, offsets):
            hidden = decode_layers(
                self.base.decoder, below, batch.positions, batch.plan(), start=self.config.first_layer
            )
        scored = self.base.decoder.norm(hidden[0][batch.rows])
        logprob, entropy = linear_logprob(
            scored, self.base.head, batch.targets, temperature=self.temperature, entropy=True
        )
        assert entropy is not None
        return logprob[batch.pick], entropy[batch.pick]

    @torch.no_grad()
    def _kl_to_base(
        self, chosen: Sequence[Sample], batches: Sequence[MicroBatch], below: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Per sample, log pi - log pi_ref of its action tokens, pi the policy that sampled; zeros if beta is 0."""
        result = [torch.zeros(action_tokens(sample)) for sample in chosen]
        if self.config.beta == 0:
            return result
        for batch, hidden in zip(batches, below, strict=True):
            reference, _ = self._logprobs(batch, hidden, reference=True)
            sizes = [action_tokens(chosen[i]) for i in batch.samples]
            for index, part in zip(batch.samples, reference.split(sizes), strict=True):
                result[index] = torch.tensor(chosen[index].logprobs) - part
        return result

    def _advantages(self, chosen: Sequence[Sample], kl: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Per sample, the advantage of each action token, normalised over the groups of all ranks."""
        given = [sample for sample in chosen if sample.advantages is not None]
        if given and len(given) != len(chosen):
            raise LearnError("some samples give advantages and some rewards; give one or the other for the whole step")
        lengths = [end - start for sample in chosen for start, end in sample.spans]
        sizes = [action_tokens(sample) for sample in chosen]
        if given:
            values = torch.tensor([a for sample in given for a in sample.advantages or ()])
            advantage = torch.nan_to_num(values.repeat_interleave(torch.tensor(lengths)), nan=0.0)
            return list(advantage.split(sizes))
        names = ranks.union([(sample.role, sample.group) for sample in chosen])
        groups = [names.index((sample.role, sample.group)) for sample in chosen for _ in sample.spans]
        if self.config.group_by == "all":
            groups, names = [0] * len(groups), names[:1]
        advantage, _ = process_advantage(
            torch.tensor([reward for sample in chosen for reward in sample.rewards], dtype=torch.float32),
            torch.tensor([0, *lengths]).cumsum(0),
            torch.tensor(groups, dtype=torch.int64),
            kl=torch.cat([*kl, torch.empty(0)]),
            beta=self.config.beta,
            whiten=self.config.whiten,
            n_groups=max(1, len(names)),
            process_group=ranks.group(),
        )
        return list(advantage.split(sizes))

    def _set_groups(self, tokens: Sequence[int]) -> None:
        """This step's learning rate; roles without tokens anywhere are left out of it."""
        rate = learning_rate(
            self.steps, self.total_steps, peak=self.config.lr, final=self.config.lr_final, warmup=self.config.warmup
        )
        for group, count in zip(self.optimizer.param_groups, tokens, strict=True):
            group["lr"], group["active"] = rate, count > 0

    def _check_finite(self, loss: torch.Tensor, batch: MicroBatch | None, chosen: Sequence[Sample]) -> None:
        fault: NonFiniteError | None = None
        if batch is not None and not bool(loss.isfinite()):
            sources = ", ".join(chosen[i].source or str(i) for i in batch.samples)
            fault = NonFiniteError(f"the loss is {loss.item()} in the micro-batch of {sources}; nothing was updated")
        ranks.raise_together(fault)

    def _report(
        self,
        samples: Sequence[Sample],
        chosen: Sequence[Sample],
        batches: Sequence[MicroBatch],
        advantages: Sequence[torch.Tensor],
        kl: Sequence[torch.Tensor],
        tally: Tally,
    ) -> LearnReport:
        tally.add_samples(samples, chosen, advantages, kl)
        roles = tally.reports(self.optimizer.norms, float(self.optimizer.param_groups[0]["lr"]))
        trained, computed, whole = ranks.total(
            [
                sum(action_tokens(sample) for sample in chosen),
                sum(batch.tokens for batch in batches),
                sum(len(sample.tokens) for sample in chosen),
            ]
        )
        return LearnReport(
            step=self.steps, roles=roles, tokens_trained=trained, tokens_computed=computed, tokens_unshared=whole
        )


class _Inputs:
    """What one forward pass of the policy needs, action tokens in the order of the micro-batch."""

    def __init__(
        self,
        batch: MicroBatch,
        below: torch.Tensor,
        chosen: Sequence[Sample],
        advantages: Sequence[torch.Tensor],
        kl: Sequence[torch.Tensor],
    ) -> None:
        self.batch = batch
        self.below = below
        self.samples = [chosen[i] for i in batch.samples]
        self.behaviour = torch.tensor([value for sample in self.samples for value in sample.logprobs])
        self.advantage = torch.cat([advantages[i] for i in batch.samples])


class _Policy(nn.Module):
    """What DeepSpeed drives: its parameters are the adapters, its forward the summed loss of one micro-batch.

    The frozen base is not registered here: DeepSpeed has no business with it.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [tensor for adapter in learner.adapters.values() for pair in adapter.values() for tensor in pair]
        )
        self._learner = [learner]  # in a list: a module would register it

    def forward(self, inputs: _Inputs | None, tally: Tally) -> torch.Tensor:
        learner = self._learner[0]
        if inputs is None:
            # ZeRO adds up gradients of the ranks in the order in which they arrive, so that a gradient of zero has to
            # come through the same operations as any other.
            batch = padding(learner.config.roles)
            logprob, _ = learner._logprobs(batch, learner._below(batch), reference=False)
            return logprob.sum() * 0.0
        logprob, entropy = learner._logprobs(inputs.batch, inputs.below, reference=False)
        roles = [learner.config.roles.index(s.role) for s in inputs.samples for _ in range(action_tokens(s))]
        result = policy_loss(
            logprob,
            inputs.behaviour,
            inputs.advantage,
            kind="ppo",
            clip_low=learner.config.clip,
            clip_high=learner.config.clip,
            denominator=1.0,
            entropy=entropy,
            groups=torch.tensor(roles),
            n_groups=len(learner.config.roles),
        )
        tally.add_pass(result.metrics)
        return result.loss
