"""The learner: samples of all roles in, one update of their adapters out.

    check -> pack -> reference and old log-probs -> advantages -> forward and backward per micro-batch -> step

Per action token r_t = -beta (log pi - log pi_ref)_t, plus score / 10 at the action's last token; A_t is the sum of what
follows within the action, normalised once per group over the batch of all ranks; the loss is a mean over all action
tokens. The loss of a rank is its sum over action tokens times the number of ranks over the GLOBAL token count, which
undoes DeepSpeed's averaging: how samples are spread over ranks and micro-batches changes nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from mappa.config import LearnConfig, role_setting
from mappa.errors import AdapterError, LearnError, NothingToLearnError
from mappa.learn import checkpoint, ranks
from mappa.learn.adapters import check_alpha, read_adapter, write_adapter
from mappa.learn.batch import Part, advantages_of, in_step, live, loss_batch, prepare
from mappa.learn.clock import Clock
from mappa.learn.engine import join, start_engine, stepped
from mappa.learn.finite import FiniteCheck, clip_scales
from mappa.learn.loss import Coefficients, guarded
from mappa.learn.optimizer import learning_rate
from mappa.learn.packing import pack
from mappa.learn.passes import Policy, Prepared
from mappa.learn.report import LearnReport, Tally, peak_memory_gb
from mappa.learn.samples import action_tokens, check_samples, learnable, scored
from mappa.learn.weights import RoleWeights
from mappa.model.base import Base, load_base
from mappa.model.lora import Adapter, add_roles, check_adapter, new_adapter
from mappa.types import Sample

IN_VAIN = 3
"""Steps in a row that nothing can be learned from, at which a run is not worth its cost."""


class Learner:
    """Trains one LoRA adapter per role over one frozen base, with DeepSpeed.

    Works in one process without torchrun, on every rank under torchrun, and inside a process group that is there
    already. `step`, `logprobs` with a divided base, `save` and `load` are collective: every rank calls them, `step`
    with its own samples, possibly none. `steps` counts the batches done; the adapters' version is `steps`.
    """

    def __init__(
        self,
        config: LearnConfig,
        base: Base | None = None,
        *,
        temperature: float = 1.0,
        total_steps: int = 1000,
        faults: Path | None = None,
    ) -> None:
        """`base` shares an already loaded model. `temperature` is that of the sampler whose log-probs the samples
        carry; `total_steps` is where the learning-rate schedule ends; under `faults` a batch that met a NaN is kept.

        Raises LearnError for settings that contradict each other or differ between ranks, ModelError for the base.
        """
        _check_config(config)
        self.config = config
        self.base = base if base is not None else load_base(config.model, config.dtype)
        self.base.model.to(ranks.device())
        self.temperature = temperature
        self.total_steps = total_steps
        self.faults = faults
        self.steps = 0
        self._stopped = False
        self._in_vain = 0
        self.router, self.layers = add_roles(
            self.base.model, config.targets, config.first_layer, config.alpha / config.rank
        )
        generator = torch.Generator().manual_seed(config.seed)
        self.weights = {role: RoleWeights(new_adapter(self.layers, config.rank, generator)) for role in config.roles}
        join()
        _agree(config, temperature, total_steps)
        self._policy = Policy(self.base, self.router, self.weights, config, temperature)
        self._engine, self.optimizer = start_engine(self._policy, self.weights, config)
        if config.start:
            self._start_from(Path(config.start))

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Every role's current weights (see `adapter`)."""
        return {role: self.adapter(role) for role in self.config.roles}

    def adapter(self, role: str) -> Adapter:
        """The role's current weights, A and B by module name: views, which the next step changes."""
        return self.weights[role].adapter()

    def stepped(self) -> list[list[torch.Tensor]]:
        """The tensors that optimizer state belongs to, by role: the adapters, or this rank's pieces of them."""
        return stepped(self._engine, self.optimizer)

    def export(self, role: str, folder: str | Path) -> None:
        """Write the role's adapter as a PEFT folder."""
        write_adapter(Path(folder), self.adapter(role), self.config, len(self.base.decoder.layers))

    def adopt(self, role: str, folder: str | Path) -> None:
        """Start `role` from the PEFT folder of an adapter. Raises AdapterError if it belongs to another base, or is of
        another rank or alpha than this learner's."""
        found = read_adapter(Path(folder))
        check_adapter(self.layers, found, str(folder))
        if other := {a.shape[0] for a, _ in found.values()} - {self.config.rank}:
            raise AdapterError(f"the adapter at {folder} has rank {min(other)}; learn.rank is {self.config.rank}")
        check_alpha(Path(folder), self.config)
        weights = self.weights[role]
        for layer, parameter in weights.parameters.items():
            checkpoint.set_weight(parameter, weights.join(layer, found))

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
        faults: Path | None = None,
    ) -> Learner:
        """A learner that goes on where `save` left off, on any number of ranks (collective). Raises CheckpointError.

        What `config.start` names is left alone, and may be gone: the checkpoint takes its place.
        """
        begun = msgspec.structs.replace(config, start="")
        learner = cls(begun, base, temperature=temperature, total_steps=total_steps, faults=faults)
        checkpoint.restore(learner, Path(folder))
        return learner

    @torch.no_grad()
    def logprobs(self, samples: Sequence[Sample], *, reference: bool = False) -> list[torch.Tensor]:
        """Log-probs of each sample's action tokens under its role's adapter, or under the base alone."""
        check_samples(samples, self.config.roles, self.base.vocabulary)
        result = [torch.empty(0)] * len(samples)
        for item in in_step(prepare(samples, self.config, self._policy), self._policy):
            values, _ = self._policy.logprobs(item, reference=reference)
            for index, part in item.split(values):
                result[index] = part
        return result

    def step(self, samples: Sequence[Sample], *, coefficients: Coefficients | None = None) -> LearnReport:
        """One batch from this rank's samples, `epochs` updates; every rank takes part.

        `coefficients` replaces the configured objective: from log-probs [N] and a LossBatch, the derivative of the
        loss, summed over action tokens, in each log-prob. It is divided by the action tokens of all ranks.

        Raises LearnError on all ranks before anything is changed. What is found in the passes (NonFiniteError, or
        LearnError for `coefficients` that fail) is raised on all ranks too, before the update; like anything else that
        ends the passes early it stops the learner, which takes no further step.
        """
        if self._stopped:
            raise LearnError("an error stopped this learner in the middle of a step; load the last checkpoint to go on")
        self._policy.clock = clock = Clock()
        with clock.measure("step"):
            report = self._step(samples, coefficients, clock)
        return msgspec.structs.replace(report, seconds=clock.parts())

    def step_if_any(self, samples: Sequence[Sample]) -> LearnReport:
        """`step`; a batch that nothing can be learned from is passed over instead: that counts, and changes nothing.

        Raises NothingToLearnError at the `IN_VAIN`th in a row, beside what `step` raises.
        """
        try:
            report = self.step(samples)
        except NothingToLearnError as error:
            self._in_vain += 1
            if self._in_vain >= IN_VAIN:
                raise NothingToLearnError(
                    f"{error}, {IN_VAIN} steps in a row. See why episodes are lost, cut off (a role's max_tokens, "
                    "learn.mask_truncated) or unscored"
                ) from error
            return self._pass_over(samples)
        self._in_vain = 0
        return report

    def _pass_over(self, samples: Sequence[Sample]) -> LearnReport:
        tally = Tally(self.config.roles)
        tally.add_samples(samples, (), (), ())
        rates = self._set_groups([0] * len(self.config.roles))
        self.steps += 1
        return LearnReport(
            step=self.steps,
            roles=tally.reports({}, rates),
            tokens_trained=0,
            tokens_computed=0,
            tokens_unshared=0,
            seconds={},
            peak_memory_gb=peak_memory_gb(),
            samples=(),
        )

    def _start_from(self, folder: Path) -> None:
        known = [role for role in self.config.roles if (folder / role).is_dir()]
        if not known:
            raise AdapterError(f"learn.start: {folder} holds no adapter of {', '.join(self.config.roles)}")
        for role in known:
            self.adopt(role, folder / role)

    def _step(self, samples: Sequence[Sample], coefficients: Coefficients | None, clock: Clock) -> LearnReport:
        chosen = self._accept(samples)
        tokens = self._tokens(chosen)
        if sum(tokens) == 0:
            raise NothingToLearnError("nothing can be learned from: there is no sample, or all are cut off or unscored")
        chosen = self._as_if_sampled(chosen)
        finite = FiniteCheck(chosen, self.steps, self.faults)
        prepared = prepare(chosen, self.config, self._policy)
        with clock.measure("passes"):
            kl, old = self._before(chosen, prepared, finite, foreign=coefficients is not None)
        advantages = advantages_of(chosen, kl, self.config)
        finite.check("advantage", advantages)
        parts = live(chosen, advantages, kl, old)
        if [id(part.sample) for part in parts] != [id(sample) for sample in chosen]:
            prepared = prepare([part.sample for part in parts], self.config, self._policy)
        rates = self._set_groups(self._tokens([part.sample for part in parts]))
        tally = Tally(self.config.roles)
        tally.add_samples(samples, chosen, advantages, kl)
        scale = ranks.world_size() / sum(tokens)
        if coefficients is not None:
            coefficients = guarded(coefficients, finite.refuse)
        self._stopped = True  # if anything ends this early: the engine holds gradients of half a step
        for _ in range(self.config.epochs):
            with clock.measure("passes"):
                self._backward(prepared, parts, scale, tally, coefficients, finite)
            with clock.measure("optimizer"):
                norms = clip_scales(self._engine, self.optimizer, self.config, finite)
                self._engine.step()
        self._stopped = False
        self.steps += 1
        computed, whole = ranks.total([sum(p.batch.tokens for p in prepared), sum(len(s.tokens) for s in chosen)])
        return LearnReport(
            step=self.steps,
            roles=tally.reports(norms, rates),
            tokens_trained=sum(tokens),
            tokens_computed=computed,
            tokens_unshared=whole,
            seconds={},
            peak_memory_gb=peak_memory_gb(),
            samples=tally.learned(
                chosen, advantages, kl if self.config.beta > 0 else None, [part.index for part in parts]
            ),
        )

    def _tokens(self, samples: Sequence[Sample]) -> list[int]:
        """Action tokens of all ranks by role (collective)."""
        return ranks.total([sum(action_tokens(s) for s in samples if s.role == role) for role in self.config.roles])

    def _accept(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples to learn from, without their unscored actions. A fault on any rank is raised on all of them."""
        fault: LearnError | None = None
        frozen = {role for role, own in self.config.role.items() if own.frozen}
        try:
            check_samples(samples, self.config.roles, self.base.vocabulary)
            chosen = [
                scored(sample)
                for sample in samples
                if sample.role not in frozen and learnable(sample, mask_truncated=self.config.mask_truncated)
            ]
            pack(chosen, self.config.roles, self.config.tokens_per_micro_batch)
        except LearnError as error:
            fault, chosen = error, []
        ranks.raise_together(fault)
        return chosen

    def _as_if_sampled(self, chosen: list[Sample]) -> list[Sample]:
        """Supervised samples with the learner's own log-probs in the place of a sampler's: the ratio of every objective
        is 1 at first, so that its gradient is that of the weighted log-likelihood (collective)."""
        supervised = [sample for sample in chosen if sample.supervised]
        if ranks.total([len(supervised)]) == [0]:
            return chosen
        asked = [msgspec.structs.replace(s, supervised=False, logprobs=(0.0,) * action_tokens(s)) for s in supervised]
        own = iter(self.logprobs(asked))
        return [
            msgspec.structs.replace(sample, logprobs=tuple(next(own).tolist())) if sample.supervised else sample
            for sample in chosen
        ]

    @torch.no_grad()
    def _before(
        self, chosen: Sequence[Sample], prepared: Sequence[Prepared], finite: FiniteCheck, *, foreign: bool
    ) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Per sample, what must be known before the first update: log pi - log pi_ref of its action tokens, pi the
        policy that sampled (zeros where beta is 0), and the learner's own log-probs where there will be several and
        the objective, or a `foreign` one, wants them."""
        config = self.config
        several = config.epochs > 1 and (config.tis_cap > 0 or foreign)
        kl = [torch.zeros(action_tokens(sample)) for sample in chosen]
        old = [torch.zeros(action_tokens(sample)) for sample in chosen]
        if config.beta == 0 and not several:
            return kl, None
        for item in in_step(prepared, self._policy):
            if config.beta > 0:
                for index, part in item.split(self._policy.logprobs(item, reference=True)[0]):
                    kl[index] = torch.tensor(chosen[index].logprobs) - part
            if several:
                for index, part in item.split(self._policy.logprobs(item)[0]):
                    old[index] = part
        finite.check("reference log-prob", kl)
        finite.check("log-prob before the update", old)
        return kl, old if several else None

    def _backward(
        self,
        prepared: Sequence[Prepared],
        parts: Sequence[Part],
        scale: float,
        tally: Tally,
        coefficients: Coefficients | None,
        finite: FiniteCheck,
    ) -> None:
        """Forward and backward of every micro-batch; every rank reduces as often as the busiest one."""
        passes = max(1, ranks.maximum(len(prepared)))
        for index in range(passes):
            self._engine.set_gradient_accumulation_boundary(index == passes - 1)
            item = prepared[index] if index < len(prepared) else None
            inputs = None if item is None else loss_batch(item, parts, self.config)
            loss, logprob = self._engine(item, inputs, tally, coefficients)
            if item is not None:
                found = dict(item.split(logprob))
                finite.check("log-prob", list(found.values()), [parts[index].sample for index in found])
            self._engine.backward(loss * scale)

    def _set_groups(self, tokens: Sequence[int]) -> dict[str, float]:
        """This batch's learning rates by role. `tokens` are those with an advantage, by role: a role without any on all
        ranks is left out of the update."""
        rates = {}
        for group, count in zip(self.optimizer.param_groups, tokens, strict=True):
            peak, final, warmup, schedule = (
                role_setting(self.config, group["name"], name) for name in ("lr", "lr_final", "warmup", "schedule")
            )
            rate = learning_rate(self.steps, self.total_steps, peak=peak, final=final, warmup=warmup, schedule=schedule)
            group["lr"] = rates[group["name"]] = rate
            group["active"] = count > 0
        return rates


def _check_config(config: LearnConfig) -> None:
    """Raise LearnError for settings that contradict each other."""
    if not config.roles or len(set(config.roles)) != len(config.roles):
        raise LearnError(f"learn.roles must name at least one role, each once; it is {config.roles}")
    for role in config.role:
        if role not in config.roles:
            raise LearnError(f"learn.role.{role} is about a role there is not; the roles are {', '.join(config.roles)}")
    if config.shard_base and config.zero_stage != 3:
        raise LearnError(f"learn.shard_base needs learn.zero_stage=3; it is {config.zero_stage}")
    if config.offload and config.zero_stage == 0:
        raise LearnError("learn.offload needs learn.zero_stage 1, 2 or 3; with 0 nothing can be moved off the device")


def _agree(config: LearnConfig, temperature: float, total_steps: int) -> None:
    """Raise LearnError on every rank if they were not started alike: they would wait for each other for ever."""
    mine = {name: repr(getattr(config, name)) for name in config.__struct_fields__}
    mine |= {"temperature": repr(temperature), "total_steps": repr(total_steps)}
    seen = ranks.union(list(mine.items()))
    differing = sorted({name for name, value in seen if mine[name] != value})
    # Which keys differ looks alike on every rank with two values; with more, each names those it sees.
    if len(seen) != len(mine):
        raise LearnError(f"the ranks were started with different settings: {', '.join(differing) or 'on other ranks'}")
