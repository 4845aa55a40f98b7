"""What actions are rewarded with, and what they are normalised with, on episodes written down by hand."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from mappa.rollout.rewards import rewards_of
from mappa.rollout.samples import samples_of
from mappa.types import Action, Episode, Outcome, Verdict


def action(role: str, score: float | None, turn: int = 0) -> Action:
    return Action(
        role=role, turn=turn, adapter=f"{role}@0", prompt_ids=(1,), output_ids=(2, 3), logprobs=(-0.1, -0.2),
        finish_reason="stop", text="", verdict=Verdict(reason="", score=score, coach="c"),
    )  # fmt: skip


def episode(index: int, scores: list[tuple[str, float | None]], *, success: bool = False, **more: object) -> Episode:
    made = Episode(
        id=f"1-{index}", task="even" if index % 2 == 0 else "odd", kind="k", seed=index, step=1,
        actions=tuple(action(role, score) for role, score in scores), outcome=Outcome(success=success),
    )  # fmt: skip
    return replace(made, **more)


ONE = episode(0, [("a", 8.0), ("b", 4.0)], success=True)
TWO = episode(1, [("a", 3.0), ("b", None)])


def test_each_kind_of_reward() -> None:
    assert rewards_of([ONE, TWO], "process") == [[0.8, 0.4], [0.3, pytest.approx(math.nan, nan_ok=True)]]
    assert rewards_of([ONE, TWO], "outcome") == [[1.0, 1.0], [0.0, 0.0]]
    assert rewards_of([ONE, TWO], "team") == [[pytest.approx(0.6)] * 2, [0.3, 0.3]]


def test_what_has_no_outcome_or_no_score_has_no_reward() -> None:
    cut = replace(TWO, cut=True, outcome=None)
    assert all(map(math.isnan, rewards_of([cut], "outcome")[0]))
    silent = episode(2, [("a", None)])
    assert all(map(math.isnan, (*rewards_of([silent], "team")[0], *rewards_of([silent], "shuffled")[0])))


def test_shuffled_scores_are_the_same_ones_in_other_places() -> None:
    episodes = [episode(index, [("a", index / 2), ("b", 10 - index / 2)]) for index in range(20)]
    episodes[3] = episode(3, [("a", None), ("b", 1.0)])
    own, drawn = rewards_of(episodes, "process"), rewards_of(episodes, "shuffled")
    for place in range(2):
        before, after = ([values[place] for values in found] for found in (own, drawn))
        assert before != after
        assert sorted(x for x in before if x == x) == sorted(x for x in after if x == x)
    assert math.isnan(drawn[3][0]), "what was not scored stays so"
    again = rewards_of(episodes, "shuffled")
    assert str(again) == str(drawn), "a resumed run draws the same"


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("role", "a"),
        ("role-turn", "a/2"),
        ("role-kind", "a/k"),
        ("role-task", "a/even"),
        ("role-task-turn", "a/even/2"),
        ("all", ""),
    ],
)
def test_groups(group_by, expected) -> None:
    made = replace(ONE, actions=(action("a", 5.0, turn=2),))
    assert [sample.group for sample in samples_of([made], group_by=group_by)] == [expected]


def test_samples_carry_the_reward_and_lost_episodes_have_no_part_in_it() -> None:
    lost = episode(4, [("a", 0.0)], error="SandboxError: gone")
    samples = samples_of([ONE, lost, TWO], group_by="role", reward="team")
    assert [sample.rewards[0] for sample in samples] == [pytest.approx(0.6), pytest.approx(0.6), 0.3, 0.3]
    pool = {sample.rewards[0] for sample in samples_of([ONE, lost, TWO], group_by="role", reward="shuffled")[::2]}
    assert pool == {0.8, 0.3}
