"""The learner against a plain reference in one process, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa.learn import Learner, Sample
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
    assert relative_error(masked.adapters, plain.adapters) == 0


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


def test_a_step_with_nothing_to_learn_from_is_refused(tiny_model: Path) -> None:
    learner = Learner(settings(tiny_model))
    for samples in ([replace(GOOD, truncated=True)], [replace(GOOD, rewards=(math.nan,))], []):
        with pytest.raises(LearnError, match="cut off or unscored"):
            learner.step(samples)


def test_roles_must_be_named_once(tiny_model: Path) -> None:
    with pytest.raises(LearnError, match="each once"):
        Learner(settings(tiny_model, roles=("a", "a")))
