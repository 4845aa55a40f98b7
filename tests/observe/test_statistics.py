from __future__ import annotations

import random

import pytest

from mappa.observe.statistics import bootstrap_interval, success_interval, wilson_interval


def test_equal_tasks_give_no_width() -> None:
    assert bootstrap_interval([[1.0, 0.0]] * 6) == (0.5, 0.5)


def test_ends_are_the_binomial_quantiles() -> None:
    # Five of ten tasks succeed: resamples are binomial(10, 1/2), whose 2.5 % and 97.5 % points are 2 and 8.
    assert bootstrap_interval([[1.0]] * 5 + [[0.0]] * 5) == (0.2, 0.8)


def test_tasks_are_resampled_not_episodes() -> None:
    one_task_each = bootstrap_interval([[1.0]] * 20 + [[0.0]] * 20)
    two_tasks = bootstrap_interval([[1.0] * 20, [0.0] * 20])
    assert two_tasks == (0.0, 1.0)
    assert one_task_each[0] > 0.3
    assert one_task_each[1] < 0.7


def test_a_task_weighs_as_many_episodes_as_it_has() -> None:
    low, high = bootstrap_interval([[1.0] * 9, [0.0]])
    assert (low, high) == (0.0, 1.0)
    assert bootstrap_interval([[2.0], [], [2.0]]) == (2.0, 2.0)


def test_width_follows_confidence_and_seed_repeats() -> None:
    values = [[0.1 * task, 0.05 * task] for task in range(12)]
    low, high = bootstrap_interval(values, seed=3)
    narrow_low, narrow_high = bootstrap_interval(values, seed=3, confidence=0.5)
    assert low < narrow_low < narrow_high < high
    assert bootstrap_interval(values, seed=3) == (low, high)


def test_coverage_on_a_known_mean() -> None:
    # 15 tasks drawn from a uniform distribution: the interval holds its mean about 9 times in 10.
    draw = random.Random(0)
    intervals = [bootstrap_interval([[draw.random()] for _ in range(15)], seed) for seed in range(20)]
    assert sum(low <= 0.5 <= high for low, high in intervals) >= 16


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    # Closed-form values: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964.
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (40, 48, (0.7042, 0.9130))],
)
def test_wilson(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-4)


def test_success_interval_never_claims_certainty() -> None:
    low, high = success_interval([[False] * 8] * 6)
    assert low == 0.0
    assert high == pytest.approx(0.0741, abs=1e-4)
    spread = [[True] * 8, [False] * 8, [True] * 8]
    assert success_interval(spread) == bootstrap_interval(spread)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([[], []])
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)
