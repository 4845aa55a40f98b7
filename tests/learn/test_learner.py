"""The learner against a plain reference in one process, what it leaves alone, and what it refuses."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace

from mappa.config import LearnConfig, RoleLearnConfig
from mappa.errors import AdapterError, LearnError, NonFiniteError, NothingToLearnError
from mappa.learn import Learner, LossBatch, Sample
from mappa.learn.batch import advantages_of
from mappa.sampler.local import LocalSampler
from mappa.types import SamplingParams
from tests.learn.helpers import ROLES, Reference, make_samples, relative_error


def settings(folder: Path, **changes: object) -> LearnConfig:
    config = LearnConfig(
        model=str(folder),
        dtype="float32",
        roles=ROLES,
        rank=4,
        alpha=8.0,
        lr=5e-3,
        beta=0.05,
        clip_norm=0.05,
        weight_decay=0.01,
        tokens_per_micro_batch=150,
    )
    return replace(config, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2, "first_layer": 1},
        {"zero_stage": 3},
        {"zero_stage": 2, "checkpoint_activations": True},
        {"zero_stage": 0, "tokens_per_micro_batch": 100_000},
        {"zero_stage": 2, "schedule": "constant", "warmup": 2},
    ],
)
def test_eight_steps_equal_the_reference(tiny_model: Path, changes: dict[str, object]) -> None:
    config = settings(tiny_model, **changes)
    learner, reference = Learner(config, total_steps=8), Reference(tiny_model, config, 8)
    for step in range(8):
        roles = ROLES if step % 3 else ROLES[:2]  # the third role is absent at the first step, and now and then
        samples = make_samples(step, roles)
        report = learner.step(samples)
        reference.step(samples)
        assert report.tokens_computed < report.tokens_unshared
    assert relative_error(learner.adapters, reference.adapters) < 2e-4


def test_masked_samples_change_nothing(tiny_model: Path) -> None:
    plain, masked = (Learner(settings(tiny_model)) for _ in range(2))
    samples = make_samples(0)
    cut = replace(samples[0], truncated=True, source="cut")
    unscored = replace(samples[5], rewards=(math.nan,), source="unscored")
    plain.step(samples)
    report = masked.step([*samples, cut, unscored])
    assert report.roles["engineer"].masked == 1 and report.roles["modeler"].masked == 1
    assert [one.source for one in report.samples] == [sample.source for sample in samples]
    for role, told in report.roles.items():
        mine = [one for one in report.samples if one.source.split("-")[1] == role]
        tokens = [value for one in mine for value in one.advantages]
        assert len(tokens) == told.tokens and sum(tokens) / len(tokens) == pytest.approx(told.advantage_mean, abs=1e-6)
        for name in ("kl", "entropy"):
            mean = sum(getattr(one, name) * len(one.advantages) for one in mine) / told.tokens
            assert mean == pytest.approx(getattr(told, name), rel=1e-4)
    assert relative_error(masked.adapters, plain.adapters) == 0


def halved(sample: Sample, **scores: tuple[float, float]) -> Sample:
    """Its action in two parts, each with a score of its own."""
    ((start, end),) = sample.spans
    middle = (start + end) // 2
    return replace(sample, spans=((start, middle), (middle, end)), **scores)


@pytest.mark.parametrize("kind", ["rewards", "advantages"])
def test_an_unscored_action_of_a_sample_counts_nowhere(tiny_model: Path, kind: str) -> None:
    """Neither in the tokens the loss is divided by, nor in the role's numbers."""
    with_one, without = (Learner(settings(tiny_model)) for _ in range(2))
    samples = [halved(s, **{"rewards": (), kind: (s.rewards[0], math.nan)}) for s in make_samples(0)]
    ends = [s.spans[0][1] for s in samples]
    cut = [
        replace(
            s,
            tokens=s.tokens[:end],
            spans=s.spans[:1],
            logprobs=s.logprobs[: end - s.spans[0][0]],
            **{kind: getattr(s, kind)[:1]},
        )
        for s, end in zip(samples, ends, strict=True)
    ]
    a, b = with_one.step(samples), without.step(cut)
    assert a.tokens_trained == b.tokens_trained == sum(len(s.logprobs) for s in cut)
    for role in ROLES:
        ours, theirs = msgspec.structs.asdict(a.roles[role]), msgspec.structs.asdict(b.roles[role])
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6, nan_ok=True)
    assert relative_error(with_one.adapters, without.adapters) < 1e-4


def test_what_was_cut_off_counts_where_it_is_asked_for(tiny_model: Path) -> None:
    samples = make_samples(0)
    cut = [replace(samples[0], truncated=True), *samples[1:]]
    plain, counted = Learner(settings(tiny_model)), Learner(settings(tiny_model, mask_truncated=False))
    plain.step(samples)
    assert counted.step(cut).roles["engineer"].masked == 0
    assert relative_error(counted.adapters, plain.adapters) == 0


def test_a_role_without_samples_does_not_move(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model))
    learner.step(make_samples(0))
    before = {name: (a.clone(), b.clone()) for name, (a, b) in learner.adapters["analyst"].items()}
    learner.step(make_samples(1, ROLES[:2]))
    for name, (a, b) in learner.adapters["analyst"].items():
        assert torch.equal(a, before[name][0]) and torch.equal(b, before[name][1])


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_a_role_whose_scores_are_all_equal_does_not_move(tiny_model: Path, advantage: str, stage: int) -> None:
    """No advantage differs from 0, so the momentum of the step before has no say. The other roles go on."""
    learner = Learner(settings(tiny_model, advantage=advantage, beta=0.0, zero_stage=stage))
    learner.step(make_samples(0))
    before = {role: weights_of(learner, role) for role in ROLES}
    equal = [replace(s, rewards=(0.5,)) if s.role == "modeler" else s for s in make_samples(1)]
    report = learner.step(equal)
    assert report.roles["modeler"].grad_norm == 0 and report.roles["modeler"].tokens > 0
    moved = {role for role in ROLES if not torch.equal(weights_of(learner, role), before[role])}
    assert moved == {"engineer", "analyst"}
    learner.step([s for s in equal if s.role == "modeler"])  # nor where nobody else moves
    assert torch.equal(weights_of(learner, "modeler"), before["modeler"]) and learner.steps == 3


def test_equal_samples_are_computed_once_and_count_twice(tiny_model: Path) -> None:
    samples = make_samples(0, each=2)
    once, twice = (Learner(settings(tiny_model, whiten=False)) for _ in range(2))
    a, b = once.step(samples), twice.step([*samples, *samples])
    assert b.tokens_computed == a.tokens_computed and b.tokens_trained == 2 * a.tokens_trained
    assert relative_error(twice.adapters, once.adapters) < 1e-6  # a mean over twice the tokens, the same mean


def test_logprobs_do_not_depend_on_packing(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model))
    learner.step(make_samples(0))
    samples = make_samples(1)
    together = learner.logprobs(samples)
    for sample, expected in zip(samples, together, strict=True):
        torch.testing.assert_close(learner.logprobs([sample])[0], expected, atol=1e-5, rtol=0)


def test_given_advantages_take_the_place_of_rewards(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model, beta=0.0))
    samples = [replace(sample, rewards=(), advantages=(1.0,)) for sample in make_samples(0)]
    before = torch.cat(learner.logprobs(samples))
    samples = [
        replace(s, logprobs=tuple(lp.tolist())) for s, lp in zip(samples, learner.logprobs(samples), strict=True)
    ]
    learner.step(samples)
    assert torch.cat(learner.logprobs(samples)).mean() > before.mean()


GOOD = Sample(role="engineer", tokens=(5, 6, 7, 8), spans=((2, 4),), logprobs=(-1.0, -1.0), rewards=(0.5,), source="s")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, role="boss"), "role 'boss' is not one of"),
        (replace(GOOD, tokens=(5, 6, 7, 999)), "outside 0..259"),
        (replace(GOOD, tokens=()), "empty"),
        (replace(GOOD, spans=((0, 2),)), "ascend without overlap inside 1..4"),
        (replace(GOOD, spans=((2, 5),)), "ascend"),
        (replace(GOOD, spans=((2, 3), (2, 4)), rewards=(0.1, 0.2)), "ascend"),
        (replace(GOOD, spans=((2, 2),)), "span of it is empty"),
        (replace(GOOD, logprobs=(-1.0,)), "1 behaviour log-probs for 2 action tokens"),
        (replace(GOOD, logprobs=(-1.0, math.nan)), "NaN or infinite"),
        (replace(GOOD, rewards=(0.5, 0.5)), "2 rewards for 1 spans"),
        (replace(GOOD, advantages=(1.0,), rewards=(0.5, 0.5)), "2 rewards for 1 spans"),
        (replace(GOOD, rewards=(math.inf,)), "infinite"),
        (replace(GOOD, tokens=(5,) * 200, spans=((198, 200),)), "tokens_per_micro_batch=150"),
    ],
)
def test_bad_samples_are_refused_by_name_and_nothing_moves(tiny_model: Path, bad: Sample, message: str) -> None:
    learner = Learner(settings(tiny_model))
    before = torch.cat([p.detach().flatten().clone() for pair in learner.adapters["engineer"].values() for p in pair])
    with pytest.raises(LearnError, match=rf"sample s: .*{message}"):
        learner.step([*make_samples(0), bad])
    after = torch.cat([p.detach().flatten() for pair in learner.adapters["engineer"].values() for p in pair])
    assert torch.equal(before, after) and learner.steps == 0


def supervised(sample: Sample, weight: float) -> Sample:
    return replace(sample, logprobs=(), rewards=(), advantages=(weight,), supervised=True)


@pytest.mark.parametrize("loss", ["ppo", "cispo", "gspo"])
def test_what_nobody_sampled_is_learned_by_its_likelihood(tiny_model: Path, loss: str) -> None:
    """The gradient is that of the weighted log-likelihood, whatever the objective of the rest."""
    samples = [supervised(sample, 0.5) for sample in make_samples(0)]
    learner, plain = (Learner(settings(tiny_model, loss=loss, beta=0.0)) for _ in range(2))
    learner.step(samples)
    plain.step(make_samples(0), coefficients=lambda logprob, batch: torch.full_like(logprob, -0.5))
    assert relative_error(learner.adapters, plain.adapters) < 1e-5


def test_it_leaves_the_advantages_of_the_sampled_as_they_are(tiny_model: Path) -> None:
    config, samples = settings(tiny_model), make_samples(0)
    generator = torch.Generator().manual_seed(0)
    kl = [torch.rand(len(sample.logprobs), generator=generator) for sample in samples]
    more = [*samples[:5], supervised(samples[3], 0.1), *samples[5:]]
    found = advantages_of(more, [*kl[:5], kl[3], *kl[5:]], config)
    assert found.pop(5).unique().tolist() == pytest.approx([0.1])
    assert all(map(torch.equal, found, advantages_of(samples, kl, config)))
    learner = Learner(config)
    before = learner.logprobs(samples[3:4])[0].sum()
    learner.step([*samples[:3], *[supervised(samples[3], 1.0)] * 8])
    assert learner.logprobs(samples[3:4])[0].sum() > before


def test_a_step_with_nothing_to_learn_from_is_refused(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model))
    for samples in ([replace(GOOD, truncated=True)], [replace(GOOD, rewards=(math.nan,))], []):
        with pytest.raises(LearnError, match="cut off or unscored"):
            learner.step(samples)


def test_a_run_passes_over_such_a_step_but_not_over_three_in_a_row(tiny_model: Path, tmp_path: Path) -> None:
    learner, nothing = Learner(settings(tiny_model)), [replace(GOOD, truncated=True)]
    reports = [learner.step_if_any(batch) for batch in (nothing, nothing)]
    assert [(r.step, r.tokens_trained, r.roles[GOOD.role].masked) for r in reports] == [(1, 0, 1), (2, 0, 1)]
    assert not any(bool(b.any()) for adapter in learner.adapters.values() for _, b in adapter.values())
    learner.save(tmp_path / "kept")
    with pytest.raises(NothingToLearnError, match="3 steps in a row"):
        learner.step_if_any(nothing)
    again = Learner.load(tmp_path / "kept", settings(tiny_model))
    assert again.step_if_any([GOOD, replace(GOOD, rewards=(0.9,))]).step == 3


def test_roles_must_be_named_once(tiny_model: Path) -> None:
    with pytest.raises(LearnError, match="each once"):
        Learner(settings(tiny_model, roles=("a", "a")))


def weights_of(learner: Learner, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for pair in learner.adapters[role].values() for p in pair])


def test_a_foreign_loss_that_is_ours_moves_the_same(tiny_model: Path) -> None:
    """PPO's coefficients, worked out outside: the derivative of -min(ratio A, clip(ratio) A) in the log-prob."""

    def ppo(logprob: torch.Tensor, batch: LossBatch) -> torch.Tensor:
        ratio = (logprob - batch.behaviour).exp()
        clipped = ratio.clamp(0.8, 1.2) * batch.advantage < ratio * batch.advantage
        assert int(batch.offsets[-1]) == len(logprob) == len(batch.entropy) == len(batch.roles)
        return torch.where(clipped, 0.0, -ratio * batch.advantage)

    ours, theirs = (Learner(settings(tiny_model)) for _ in range(2))
    for step in range(2):
        a, b = ours.step(make_samples(step)), theirs.step(make_samples(step), coefficients=ppo)
        assert a.roles["modeler"].grad_norm == pytest.approx(b.roles["modeler"].grad_norm, rel=1e-4)
    # Rounding is all: Adam makes it as large as its steps where gradients are faint.
    assert relative_error(theirs.adapters, ours.adapters) < 1e-4


def test_a_foreign_loss_that_fails_stops_the_learner_before_the_update(tiny_model: Path) -> None:
    """Not with the first micro-batch: gradients of those before it must not reach a later step."""

    def fails(logprob: torch.Tensor, batch: LossBatch) -> torch.Tensor:
        calls.append(len(logprob))
        if len(calls) < 2:
            return -batch.advantage
        if how == "raises":
            raise ZeroDivisionError("mine")
        return logprob[1:] if how == "another length" else logprob * math.nan

    for how, message in (
        ("another length", "one per action token"),
        ("a NaN", "with a NaN or infinite one"),
        ("raises", r"raised ZeroDivisionError\('mine'\)"),
    ):
        calls: list[int] = []
        learner = Learner(settings(tiny_model))
        with pytest.raises(LearnError, match=f"{message}.*; the update was not made") as caught:
            learner.step(make_samples(0), coefficients=fails)
        assert isinstance(caught.value.__cause__, ZeroDivisionError) == (how == "raises")
        assert learner.steps == 0 and not any(bool(b.any()) for _, b in learner.adapter("engineer").values())
        with pytest.raises(LearnError, match="load the last checkpoint"):
            learner.step(make_samples(1))


@pytest.mark.parametrize(
    "changes",
    [{"loss": "cispo"}, {"loss": "gspo"}, {"loss": "reinforce"}, {"tis_cap": 2.0}, {"advantage": "rloo"}],
)
def test_other_objectives_move_every_role(tiny_model: Path, changes: dict[str, object]) -> None:
    learner = Learner(settings(tiny_model, **changes))
    before = {role: weights_of(learner, role) for role in ROLES}
    report = learner.step(make_samples(0))
    for role in ROLES:
        assert not torch.equal(weights_of(learner, role), before[role])
        assert report.roles[role].grad_norm > 0 and math.isfinite(report.roles[role].loss)


@pytest.mark.parametrize("tis_cap", [0.0, 2.0])
def test_a_second_epoch_corrects_for_the_sampler_as_the_first_does(tiny_model: Path, tis_cap: float) -> None:
    """A step too small to tell leaves the second epoch the loss, the ratio and the gradient of the first."""
    one, two = (Learner(settings(tiny_model, epochs=epochs, lr=1e-12, tis_cap=tis_cap)) for epochs in (1, 2))
    off = [
        replace(s, logprobs=tuple(value + (-1) ** i / 4 for i, value in enumerate(s.logprobs))) for s in make_samples(0)
    ]
    first, second = one.step(off), two.step(off)
    for role in ROLES:
        a, b = first.roles[role], second.roles[role]
        assert a.ratio == pytest.approx(1.0, abs=1e-4) if tis_cap else abs(a.ratio - 1) > 0.01
        assert b.ratio == pytest.approx(a.ratio, rel=1e-3) and b.grad_norm == pytest.approx(a.grad_norm, rel=1e-3)
        assert b.clip_fraction == pytest.approx(a.clip_fraction, abs=1e-6)


def test_a_foreign_loss_is_told_the_policy_before_the_first_epoch(tiny_model: Path) -> None:
    seen: list[torch.Tensor] = []

    def record(logprob: torch.Tensor, batch: LossBatch) -> torch.Tensor:
        assert batch.old is not None
        seen.append(float((logprob - batch.old).abs().max()))
        return -batch.advantage

    learner = Learner(settings(tiny_model, epochs=2, tokens_per_micro_batch=100_000))
    learner.step(make_samples(0), coefficients=record)
    first, second = seen
    assert first < 1e-5 and second > 1e-4 and learner.steps == 1


def test_a_role_has_its_own_settings(tiny_model: Path) -> None:
    own = {"engineer": RoleLearnConfig(frozen=True), "modeler": RoleLearnConfig(lr=1e-4, clip_norm=1e-3)}
    learner, plain = Learner(settings(tiny_model, role=own)), Learner(settings(tiny_model))
    before = {role: weights_of(learner, role) for role in ROLES}
    report = learner.step(make_samples(0))
    assert torch.equal(weights_of(learner, "engineer"), before["engineer"])
    assert report.roles["modeler"].lr == pytest.approx(1e-4) and report.roles["engineer"].masked == 4
    plain.step([s for s in make_samples(0) if s.role != "engineer"])
    assert torch.equal(weights_of(learner, "analyst"), weights_of(plain, "analyst"))
    assert not torch.equal(weights_of(learner, "modeler"), weights_of(plain, "modeler"))


def test_actions_without_advantage_do_no_gradient_work(tiny_model: Path) -> None:
    """Half of the samples have advantage 0: the gradient is that of the rest, over the tokens of all."""
    samples = [replace(s, rewards=(), advantages=(float(i % 2),)) for i, s in enumerate(make_samples(0))]
    learner = Learner(settings(tiny_model, beta=0.0, clip_norm=0.0))
    report = learner.step(samples)
    everything = Learner(settings(tiny_model, beta=0.0, clip_norm=0.0))
    tiny = [replace(s, advantages=(1e-20 if s.advantages == (0.0,) else 1.0,)) for s in samples]
    full = everything.step(tiny)
    assert report.tokens_computed < full.tokens_computed and report.tokens_trained == full.tokens_trained
    for role in ROLES:
        assert report.roles[role].grad_norm == pytest.approx(full.roles[role].grad_norm, rel=1e-4)


def test_an_action_without_advantage_stays_context(tiny_model: Path) -> None:
    (start, end), *_ = (sample := make_samples(0)[3]).spans
    two = replace(
        sample,
        spans=((start, start + 4), (end - 5, end)),
        logprobs=(*sample.logprobs[:4], *sample.logprobs[-5:]),
        rewards=(),
        advantages=(0.0, 1.0),
    )
    one = replace(two, spans=two.spans[1:], logprobs=two.logprobs[4:], advantages=(1.0,))
    a, b = (Learner(settings(tiny_model, beta=0.0, clip_norm=0.0)) for _ in range(2))
    first, second = a.step([two]).roles["engineer"], b.step([one]).roles["engineer"]
    assert first.grad_norm * 9 == pytest.approx(second.grad_norm * 5, rel=1e-4)


def test_a_nan_stops_the_step_and_keeps_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    learner = Learner(settings(tiny_model), faults=tmp_path / "faults")
    samples = make_samples(0)
    with torch.no_grad():
        next(iter(learner.adapters["modeler"].values()))[1].fill_(math.nan)
    before = weights_of(learner, "engineer")
    with pytest.raises(NonFiniteError, match=r"log-prob of role 'modeler', sample 0-modeler-\d, is nan"):
        learner.step(samples)
    assert torch.equal(weights_of(learner, "engineer"), before) and learner.steps == 0
    (kept,) = (tmp_path / "faults").iterdir()
    assert msgspec.msgpack.decode(kept.read_bytes(), type=list[Sample]) == samples
    with pytest.raises(LearnError, match="load the last checkpoint"):
        learner.step(samples)


def test_the_report_says_where_the_time_went(tiny_model: Path) -> None:
    report = Learner(settings(tiny_model)).step(make_samples(0))
    assert set(report.seconds) == {"attention", "linear", "lm_head", "optimizer", "other"}
    assert all(seconds > 0 for seconds in report.seconds.values()) and report.peak_memory_gb > 0.1
    assert report.roles["analyst"].reward == pytest.approx(
        sum(s.rewards[0] for s in make_samples(0) if s.role == "analyst") / 4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_base": True}, r"learn\.shard_base needs learn\.zero_stage=3; it is 2"),
        ({"offload": True, "zero_stage": 0}, r"learn\.offload needs"),
        ({"role": {"boss": RoleLearnConfig()}}, r"learn\.role\.boss is about a role there is not"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tiny_model: Path, changes: dict, message: str) -> None:
    with pytest.raises(LearnError, match=message):
        Learner(settings(tiny_model, **changes))


def test_an_adapter_is_taken_over_or_refused(tiny_model: Path, tiny_qwen: Path, tmp_path: Path) -> None:
    learner, other = Learner(settings(tiny_model)), Learner(settings(tiny_qwen))
    learner.step(make_samples(0))
    learner.export("modeler", tmp_path / "modeler")
    fresh = Learner(settings(tiny_model))
    fresh.adopt("analyst", tmp_path / "modeler")
    assert torch.equal(weights_of(fresh, "analyst"), weights_of(learner, "modeler"))
    with pytest.raises(AdapterError, match="the base needs"):
        other.adopt("analyst", tmp_path / "modeler")
    with pytest.raises(AdapterError, match=r"has rank 4; learn\.rank is 8"):
        Learner(settings(tiny_model, rank=8)).adopt("analyst", tmp_path / "modeler")


def test_an_adapter_of_another_scale_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The same weights would act four times as strongly, without a word."""
    learner = Learner(settings(tiny_model, alpha=8.0))
    learner.export("modeler", tmp_path / "modeler")
    with pytest.raises(AdapterError, match=r"has lora_alpha 8; learn.alpha is 32, .* 4 times .*: set learn.alpha=8"):
        Learner(settings(tiny_model, alpha=32.0, start=str(tmp_path)))
    said = tmp_path / "modeler" / "adapter_config.json"
    ours = msgspec.json.decode(said.read_bytes())
    said.write_bytes(msgspec.json.encode(ours | {"lora_alpha": 4.0, "use_rslora": True}))  # 4 / sqrt(4) = 8 / 4
    learner.adopt("analyst", tmp_path / "modeler")
    for theirs, message in (
        (ours | {"alpha_pattern": {"q_proj": 1}}, "alpha_pattern"),
        ({"r": 4}, "damaged: .*lora_alpha"),
    ):
        said.write_bytes(msgspec.json.encode(theirs))
        with pytest.raises(AdapterError, match=message):
            learner.adopt("analyst", tmp_path / "modeler")
    said.unlink()
    with pytest.raises(AdapterError, match="which says its scale, is missing"):
        learner.adopt("analyst", tmp_path / "modeler")


def test_logprobs_are_those_of_the_sampler(tiny_model: Path) -> None:
    """Two turns, the second's context holding the first: what was sampled is what is trained on, so the ratio is 1."""
    learner = Learner(settings(tiny_model), temperature=0.7)
    sampler = LocalSampler(learner.base, learner.router, learner.layers, max_rows=4, max_context=256, threads=1)

    async def play() -> Sample:
        await sampler.publish("modeler", 0, learner.adapter("modeler"))
        tokens: tuple[int, ...] = tuple(range(5, 45))
        spans, logprobs = [], []
        for turn in range(2):
            params = SamplingParams(temperature=0.7, max_tokens=12, seed=turn)
            wrote = await sampler.generate(tokens, "modeler@0", params, f"e/modeler/{turn}")
            spans.append((len(tokens), len(tokens) + len(wrote.output_ids)))
            logprobs.extend(wrote.logprobs)
            tokens = (*tokens, *wrote.output_ids, 7, 8, 9)
        return Sample(role="modeler", tokens=tokens, spans=tuple(spans), logprobs=tuple(logprobs), rewards=(1.0, 0.0))

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, b in learner.adapters["modeler"].values():
            b.normal_(std=0.05, generator=generator)
    try:
        sample = asyncio.run(play())
    finally:
        sampler.close()
    (ours,) = learner.logprobs([sample])
    torch.testing.assert_close(ours, torch.tensor(sample.logprobs), atol=1e-4, rtol=0)
