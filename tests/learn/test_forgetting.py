"""Why many adapters: a team that learned is untouched by what is trained after it; a single adapter forgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import AdapterError
from mappa.learn import Learner, Sample
from tests.learn.helpers import ROLES, make_samples

NEWCOMER = "reporter"


def settings(folder: Path, roles: tuple[str, ...], start: Path | None = None) -> LearnConfig:
    return LearnConfig(
        model=str(folder), dtype="float32", roles=roles, rank=4, alpha=8.0, lr=5e-3, schedule="constant",
        beta=0.0, tokens_per_micro_batch=2000, start=str(start or ""),
    )  # fmt: skip


def lessons(role: str, adapter: str) -> list[Sample]:
    """Four actions of a role, two of them right."""
    found = make_samples(0, [role])
    return [replace(one, role=adapter, rewards=(float(place < 2),)) for place, one in enumerate(found)]


def opposite(samples: list[Sample], adapter: str) -> list[Sample]:
    """A second system that wants the contrary in the same places."""
    return [replace(one, role=adapter, rewards=(1 - one.rewards[0],)) for one in samples[:4]]


def taught(learner: Learner, samples: list[Sample], steps: int = 6) -> Learner:
    for _ in range(steps):
        learner.step(samples)
    return learner


def skill(learner: Learner, samples: list[Sample]) -> float:
    """How much likelier the right actions are than the wrong ones, nats per token."""
    means = [float(values.mean()) for values in learner.logprobs(samples)]
    return (means[0] + means[1] - means[2] - means[3]) / 2


def keep(learner: Learner, folder: Path) -> Path:
    for role in learner.config.roles:
        learner.export(role, folder / role)
    return folder


def test_a_team_is_untouched_by_what_is_trained_after_it(tiny_model: Path, tmp_path: Path) -> None:
    team = [one for role in ROLES for one in lessons(role, role)]
    first = taught(Learner(settings(tiny_model, ROLES)), team)
    assert skill(first, team[:4]) > 0.5
    second = Learner(settings(tiny_model, (*ROLES, NEWCOMER), keep(first, tmp_path)))
    before = second.logprobs(team)
    taught(second, opposite(team, NEWCOMER))
    for role in ROLES:
        for (a, b), (c, d) in zip(first.adapter(role).values(), second.adapter(role).values(), strict=True):
            assert torch.equal(a, c) and torch.equal(b, d), role
    assert all(torch.equal(one, other) for one, other in zip(before, second.logprobs(team), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, first.logprobs(team), strict=True))


def test_a_single_adapter_forgets(tiny_model: Path, tmp_path: Path) -> None:
    team = [one for role in ROLES for one in lessons(role, "single")]
    first = taught(Learner(settings(tiny_model, ("single",))), team)
    learned = skill(first, team[:4])
    second = Learner(settings(tiny_model, ("single",), keep(first, tmp_path)))
    assert skill(second, team[:4]) == learned > 0.5
    assert skill(taught(second, opposite(team, "single")), team[:4]) < learned / 2


def test_a_start_that_holds_none_of_the_adapters_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"learn\.start: .* holds no adapter of engineer"):
        Learner(settings(tiny_model, ROLES, tmp_path))
