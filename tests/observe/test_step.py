"""What a real update reports, as a step's numbers: where nothing was measured there is none."""

from __future__ import annotations

from pathlib import Path

from mappa.config import LearnConfig, RoleLearnConfig
from mappa.learn import Learner
from mappa.observe.metrics import RoleMetrics, Seconds
from mappa.observe.step import step_metrics
from mappa.types import Sample
from tests.learn.helpers import ROLES, make_samples

OF_AN_UPDATE = ("entropy", "ratio", "clip_fraction", "advantage_std", "loss", "grad_norm")


def measured(model: Path, samples: list[Sample], **changes: object) -> dict[str, RoleMetrics]:
    settings = {"rank": 4, "zero_stage": 0, "tokens_per_micro_batch": 128, **changes}
    learner = Learner(LearnConfig(model=str(model), dtype="float32", roles=ROLES, **settings))  # type: ignore[arg-type]
    return step_metrics([], learner.step_if_any(samples), Seconds(), 0).roles


def none_of(metrics: RoleMetrics) -> bool:
    return all(getattr(metrics, name) is None for name in (*OF_AN_UPDATE, "kl"))


def test_a_frozen_or_absent_role_has_no_numbers_of_an_update(tiny_model: Path) -> None:
    frozen, absent, learned = ROLES
    samples = [sample for sample in make_samples(0) if sample.role != absent]
    found = measured(tiny_model, samples, role={frozen: RoleLearnConfig(frozen=True)})
    assert none_of(found[frozen]) and none_of(found[absent])
    assert all(getattr(found[learned], name) is not None for name in (*OF_AN_UPDATE, "kl"))
    assert all(none_of(role) for role in measured(tiny_model, []).values()), "a step that was passed over"


def test_without_a_look_at_the_base_there_is_no_kl_to_it(tiny_model: Path) -> None:
    found = measured(tiny_model, make_samples(0), beta=0.0)
    assert all(role.kl is None and role.entropy is not None for role in found.values())


def test_the_spread_of_advantages_is_that_of_what_entered_the_loss(tiny_model: Path) -> None:
    for role in measured(tiny_model, make_samples(0)).values():
        assert role.advantage_std is not None and abs(role.advantage_std - 1) < 1e-3
